import type { Kernel } from "../kernel.ts";
import { COUNTS, type StepSizes } from "./counts.ts";

export interface RmsNormOptions {
  readonly hiddenSize: number;
  readonly eps: number;
  /** All tokens, or the sampled rows alone, gathered. */
  readonly rows: "tokens" | "samples";
  /** Columns from one row of the input to the next, where it is part of wider rows; a multiple of 4. */
  readonly stride?: number;
}

const ROW = {
  tokens: { binding: "", row: "group.x" },
  samples: {
    binding: "@group(0) @binding(4) var<storage, read> sample_rows: array<u32>; // [numSamples]",
    row: "sample_rows[group.x]",
  },
} as const;

const WORKGROUP = 32;

/** WGSL of `inverse_rms(lane, row)`: 1 / sqrt(mean(hidden[row]²) + eps), the same in every lane. */
export function inverseRms(hiddenSize: number, eps: number, stride = hiddenSize): string {
  return /* wgsl */ `
const H4 = ${hiddenSize / 4}u;
const STRIDE4 = ${stride / 4}u;
const LANES = ${WORKGROUP}u;
var<workgroup> squares: array<f32, LANES>;
fn inverse_rms(lane: u32, row: u32) -> f32 {
  var sum = 0.0;
  for (var i = lane; i < H4; i += LANES) {
    let v = hidden[row * STRIDE4 + i];
    sum += dot(v, v);
  }
  squares[lane] = sum;
  workgroupBarrier();
  var all = 0.0;
  for (var i = 0u; i < LANES + counts.zero; i++) { all += squares[i]; }
  return inverseSqrt(all / ${hiddenSize}.0 + ${eps.toExponential()});
}`;
}

/**
 * out[i, :] = hidden[row, :] / rms(hidden[row, :]) · scale, row = i or sampleRows[i].
 *
 * 0 counts; 1 hidden f32 [numTokens, stride]; 2 scale f32 [hiddenSize]; 3 out f32 [numTokens|numSamples, hiddenSize];
 * 4 sampleRows u32 [numSamples] (samples)
 * A workgroup normalises one row.
 */
export function rmsNorm(options: RmsNormOptions): Kernel<StepSizes> {
  const { hiddenSize, eps, rows, stride } = options;
  return {
    label: `rms-norm ${rows}`,
    grid: (sizes) => [sizes[rows], 1, 1],
    wgsl: /* wgsl */ `
${COUNTS}
@group(0) @binding(1) var<storage, read> hidden: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> scale: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> out: array<vec4<f32>>;
${ROW[rows].binding}
${inverseRms(hiddenSize, eps, stride)}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  if (group.x >= counts.${rows}) { return; }
  let row = ${ROW[rows].row};
  let factor = inverse_rms(lane, row);
  for (var i = lane; i < H4; i += LANES) {
    out[group.x * H4 + i] = hidden[row * STRIDE4 + i] * factor * scale[i];
  }
}`,
  };
}
