import { INT8_ROW_LARGEST, INT8_ROW_SMALLEST } from "../../int8-rows.ts";
import { F16_MAX } from "../../tensor.ts";
import type { Kernel } from "../kernel.ts";
import { COUNTS, type StepSizes } from "./counts.ts";
import { inverseRms } from "./rms-norm.ts";

export interface RmsNormRoundOptions {
  readonly hiddenSize: number;
  readonly eps: number;
  /** What rows are rounded to. */
  readonly wire: "f16" | "int8";
}

/** WGSL of `round_row(v, largest)`: values of a row whose largest magnitude is known, as the wire carries them. */
const ROUND_ROW = {
  f16: /* wgsl */ `
// To the nearest f16, ties to even, on the bits: drivers drop an unpack of a pack. Below 2^-14 f16 has steps of 2^-24.
fn round16(v: vec4<f32>) -> vec4<f32> {
  let bits = bitcast<vec4<u32>>(v);
  let odd = (bits >> vec4<u32>(13u)) & vec4<u32>(1u);
  let normal = bitcast<vec4<f32>>((bits + 0xfffu + odd) & vec4<u32>(0xffffe000u));
  let small = round(v * 16777216.0) / 16777216.0;
  return select(normal, small, abs(v) < vec4<f32>(6.103515625e-5));
}
fn round_row(v: vec4<f32>, largest: f32) -> vec4<f32> {
  return select(v, round16(v), largest <= ${F16_MAX}.0);
}`,
  int8: /* wgsl */ `
// As core/int8-rows.ts: the scale has 12 significant bits, so that its products with whole numbers are exact.
fn round_row(v: vec4<f32>, largest: f32) -> vec4<f32> {
  let step = bitcast<f32>((bitcast<u32>(largest / 127.0) + 0xfffu) & 0xfffff000u);
  let q = clamp(round(v / step), vec4<f32>(-127.0), vec4<f32>(127.0));
  let rounded = select(q * step, vec4<f32>(), largest < ${INT8_ROW_SMALLEST.toExponential()});
  return select(v, rounded, largest <= ${INT8_ROW_LARGEST.toExponential()});
}`,
} as const;

/**
 * RMSNorm with a second result for the experts: each row rounded to what the wire carries: to f16 values, unless a value
 * of the row is beyond ±65504, or to int8 with a scale.
 *
 * 0 counts; 1 hidden f32 [numTokens, hiddenSize]; 2 scale f32 [hiddenSize]; 3 out f32 [numTokens, hiddenSize];
 * 4 rounded f32 [numTokens, hiddenSize]
 */
export function rmsNormRound(options: RmsNormRoundOptions): Kernel<StepSizes> {
  const { hiddenSize, eps, wire } = options;
  return {
    label: `rms-norm-round ${wire}`,
    grid: (sizes) => [sizes.tokens, 1, 1],
    wgsl: /* wgsl */ `
${COUNTS}
@group(0) @binding(1) var<storage, read> hidden: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> scale: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> out: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> rounded: array<vec4<f32>>;
${inverseRms(hiddenSize, eps)}
var<workgroup> largest: array<f32, LANES>;
${ROUND_ROW[wire]}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let row = group.x;
  if (row >= counts.tokens) { return; }
  let factor = inverse_rms(lane, row);
  var magnitude = vec4<f32>();
  for (var i = lane; i < H4; i += LANES) {
    magnitude = max(magnitude, abs(hidden[row * H4 + i] * factor * scale[i]));
  }
  largest[lane] = max(max(magnitude.x, magnitude.y), max(magnitude.z, magnitude.w));
  workgroupBarrier();
  var all = 0.0;
  for (var i = 0u; i < LANES + counts.zero; i++) { all = max(all, largest[i]); }
  for (var i = lane; i < H4; i += LANES) {
    let v = hidden[row * H4 + i] * factor * scale[i];
    out[row * H4 + i] = v;
    rounded[row * H4 + i] = round_row(v, all);
  }
}`,
  };
}
