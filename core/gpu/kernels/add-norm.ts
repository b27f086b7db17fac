import type { Kernel } from "../kernel.ts";
import { COUNTS, type StepSizes } from "./counts.ts";
import { inverseRms } from "./rms-norm.ts";

export interface AddNormOptions {
  readonly hiddenSize: number;
  readonly eps: number;
  /** What the sums are multiplied by before they are added. */
  readonly factor: number;
}

/**
 * hidden += factor · sums, then out = hidden / rms(hidden) · scale: the end of a layer and the beginning of the next.
 *
 * 0 counts; 1 sums f32 [numTokens, hiddenSize]; 2 hidden f32 [numTokens, hiddenSize]; 3 scale f32 [hiddenSize];
 * 4 out f32 [numTokens, hiddenSize]
 * A workgroup works on one row.
 */
export function addNorm(options: AddNormOptions): Kernel<StepSizes> {
  const { hiddenSize, eps, factor } = options;
  return {
    label: "add-norm",
    grid: (sizes) => [sizes.tokens, 1, 1],
    wgsl: /* wgsl */ `
${COUNTS}
const FACTOR = f32(${factor});
@group(0) @binding(1) var<storage, read> sums: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> hidden: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> scale: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> out: array<vec4<f32>>;
${inverseRms(hiddenSize, eps)}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let row = group.x;
  // A lane reads again what it wrote itself, and nothing else.
  for (var i = lane; i < H4; i += LANES) { hidden[row * H4 + i] += FACTOR * sums[row * H4 + i]; }
  let factor = inverse_rms(lane, row);
  for (var i = lane; i < H4; i += LANES) { out[row * H4 + i] = hidden[row * H4 + i] * factor * scale[i]; }
}`,
  };
}
