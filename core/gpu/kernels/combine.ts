import type { Kernel } from "../kernel.ts";
import { ceilDiv, COUNTS, type StepSizes } from "./counts.ts";

const WORKGROUP = 32;

/**
 * sums[row, :] = Σ over the row's pairs that have a slot of weight · pairs[pair, :], in the order of the pairs.
 *
 * 0 counts; 1 pairs f32 [numRows·topK, hiddenSize]; 2 routing u32 [numRows, topK, 2] (slot or NONE, weight bits);
 * 3 sums f32 [numRows, hiddenSize]
 */
export function combine(hiddenSize: number): Kernel<StepSizes> {
  return {
    label: "combine",
    grid: (sizes) => [ceilDiv(hiddenSize / 4, WORKGROUP), sizes.tokens, 1],
    wgsl: /* wgsl */ `
${COUNTS}
const H4 = ${hiddenSize / 4}u;
@group(0) @binding(1) var<storage, read> pairs: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> routing: array<vec2<u32>>;
@group(0) @binding(3) var<storage, read_write> sums: array<vec4<f32>>;

@compute @workgroup_size(${WORKGROUP})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  if (id.x >= H4) { return; }
  var sum = vec4<f32>();
  for (var j = 0u; j < counts.top_k; j++) {
    let pair = id.y * counts.top_k + j;
    if (routing[pair].x != NONE) {
      sum += bitcast<f32>(routing[pair].y) * pairs[pair * H4 + id.x];
    }
  }
  sums[id.y * H4 + id.x] = sum;
}`,
  };
}
