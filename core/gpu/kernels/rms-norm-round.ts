import { F16_MAX } from "../../tensor.ts";
import type { Kernel } from "../kernel.ts";
import { COUNTS, type StepSizes } from "./counts.ts";
import { inverseRms } from "./rms-norm.ts";

export interface RmsNormRoundOptions {
  readonly hiddenSize: number;
  readonly eps: number;
}

/**
 * RMSNorm with a second result for the experts: each row rounded to f16 values, as the wire carries it, unless a value
 * of the row is beyond ±65504.
 *
 * 0 counts; 1 hidden f32 [numTokens, hiddenSize]; 2 scale f32 [hiddenSize]; 3 out f32 [numTokens, hiddenSize];
 * 4 rounded f32 [numTokens, hiddenSize]
 */
export function rmsNormRound(options: RmsNormRoundOptions): Kernel<StepSizes> {
  const { hiddenSize, eps } = options;
  return {
    label: "rms-norm-round",
    grid: (sizes) => [sizes.tokens, 1, 1],
    wgsl: /* wgsl */ `
${COUNTS}
@group(0) @binding(1) var<storage, read> hidden: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> scale: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> out: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> rounded: array<vec4<f32>>;
${inverseRms(hiddenSize, eps)}
var<workgroup> largest: array<f32, LANES>;

// To the nearest f16, ties to even, on the bits: drivers drop an unpack of a pack. Below 2^-14 f16 has steps of 2^-24.
fn round16(v: vec4<f32>) -> vec4<f32> {
  let bits = bitcast<vec4<u32>>(v);
  let odd = (bits >> vec4<u32>(13u)) & vec4<u32>(1u);
  let normal = bitcast<vec4<f32>>((bits + 0xfffu + odd) & vec4<u32>(0xffffe000u));
  let small = round(v * 16777216.0) / 16777216.0;
  return select(normal, small, abs(v) < vec4<f32>(6.103515625e-5));
}

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
    rounded[row * H4 + i] = select(v, round16(v), all <= ${F16_MAX}.0);
  }
}`,
  };
}
