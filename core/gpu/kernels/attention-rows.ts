import type { Kernel } from "../kernel.ts";
import type { AttentionOptions } from "./attention.ts";
import { ceilDiv, COUNTS, type StepSizes } from "./counts.ts";

const WORKGROUP = 32;

/**
 * Causal attention over the paged cache for many tokens: the same bindings and result as `attention`.
 *
 * An invocation computes one query head of one token with online softmax and no barrier; neighbours are neighbouring
 * tokens, which look at the same keys.
 */
export function attentionRows(options: AttentionOptions): Kernel<StepSizes> {
  const { numHeads, numKvHeads, headDim, blockSize, blocksPerSequence } = options;
  return {
    label: `attention-rows ${numHeads}/${numKvHeads}×${headDim}`,
    grid: (sizes) => [ceilDiv(sizes.tokens, WORKGROUP), numHeads, 1],
    wgsl: /* wgsl */ `
${COUNTS}
const D4 = ${headDim / 4}u;
const HEADS = ${numHeads}u;
const KV_HEADS = ${numKvHeads}u;
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> cache: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> positions: array<u32>;
@group(0) @binding(4) var<storage, read> sequence_rows: array<u32>;
@group(0) @binding(5) var<storage, read> block_tables: array<u32>;
@group(0) @binding(6) var<storage, read_write> out: array<vec4<f32>>;

@compute @workgroup_size(${WORKGROUP})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  let token = id.x;
  let head = id.y;
  if (token >= counts.tokens) { return; }
  let kv_head = head / ${numHeads / numKvHeads}u;
  let table = sequence_rows[token] * ${blocksPerSequence}u;
  let base = (token * HEADS + head) * D4;
  var query: array<vec4<f32>, D4>;
  var acc: array<vec4<f32>, D4>;
  for (var d = 0u; d < D4; d++) { query[d] = q[base + d] * ${headDim ** -0.5}; }
  var top = -3.0e38;
  var sum = 0.0;
  let last = positions[token];
  for (var key = 0u; key <= last; key++) {
    let slot = block_tables[table + key / ${blockSize}u] * ${blockSize}u + key % ${blockSize}u;
    let k = (slot * 2u * KV_HEADS + kv_head) * D4;
    let v = k + KV_HEADS * D4;
    var score = 0.0;
    for (var d = 0u; d < D4; d++) { score += dot(query[d], cache[k + d]); }
    let highest = max(top, score);
    let fade = exp(top - highest);
    let p = exp(score - highest);
    sum = sum * fade + p;
    for (var d = 0u; d < D4; d++) { acc[d] = acc[d] * fade + p * cache[v + d]; }
    top = highest;
  }
  for (var d = 0u; d < D4; d++) { out[base + d] = acc[d] / sum; }
}`,
  };
}
