import type { Kernel } from "../kernel.ts";
import { ceilDiv, COUNTS, type StepSizes } from "./counts.ts";

const WORKGROUP = 64;

/**
 * hidden += factor · sums.
 *
 * 0 counts; 1 sums f32 [numTokens, hiddenSize]; 2 hidden f32 [numTokens, hiddenSize]
 */
export function add(hiddenSize: number, factor = 1): Kernel<StepSizes> {
  return {
    label: "add",
    grid: (sizes) => [ceilDiv(hiddenSize / 4, WORKGROUP), sizes.tokens, 1],
    wgsl: /* wgsl */ `
${COUNTS}
const H4 = ${hiddenSize / 4}u;
const FACTOR = f32(${factor});
@group(0) @binding(1) var<storage, read> sums: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> hidden: array<vec4<f32>>;

@compute @workgroup_size(${WORKGROUP})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  if (id.x >= H4) { return; }
  hidden[id.y * H4 + id.x] += FACTOR * sums[id.y * H4 + id.x];
}`,
  };
}
