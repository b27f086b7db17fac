import type { Kernel } from "../kernel.ts";
import { ceilDiv, COUNTS, type StepSizes } from "./counts.ts";

export interface AttentionOptions {
  readonly numHeads: number;
  readonly numKvHeads: number;
  /** A multiple of 4. */
  readonly headDim: number;
  /** Tokens of a KV block. */
  readonly blockSize: number;
  /** Block ids of one row of the block tables. */
  readonly blocksPerSequence: number;
}

/** Lanes that share the keys of one token: lane s takes keys s, s + SPLITS, … */
const SPLITS = 8;
/** Tokens of a workgroup. */
const TOKENS = 4;
/** Widest head whose query and result stay in registers; wider ones would spill, and take compilers a minute to unroll. */
const MAX_UNROLLED = 64;

/**
 * Causal attention over the paged cache with online softmax, for prefill chunks and decodes in one batch.
 *
 * 0 counts; 1 q f32 [numTokens, numHeads·headDim]; 2 cache f32 [numSlots, 2, numKvHeads·headDim], k before v;
 * 3 positions u32 [numTokens]; 4 sequenceRows u32 [numTokens]; 5 blockTables u32 [numSequences, blocksPerSequence];
 * 6 out f32 [numTokens, numHeads·headDim]
 * A workgroup computes one query head of TOKENS tokens. How the keys are split depends on nothing but their position, so
 * that a token's result has the same bits in whatever batch it comes.
 */
export function attention(options: AttentionOptions): Kernel<StepSizes> {
  const { numHeads, numKvHeads, headDim, blockSize, blocksPerSequence } = options;
  const columns = headDim <= MAX_UNROLLED ? "D4" : "D4 + counts.zero";
  return {
    label: `attention ${numHeads}/${numKvHeads}×${headDim}`,
    workgroupBytes: SPLITS * TOKENS * (2 + headDim) * 4,
    grid: (sizes) => [ceilDiv(sizes.tokens, TOKENS), numHeads, 1],
    wgsl: /* wgsl */ `
${COUNTS}
const SPLITS = ${SPLITS}u;
const TOKENS = ${TOKENS}u;
const LANES = ${SPLITS * TOKENS}u;
const D4 = ${headDim / 4}u;
const HEADS = ${numHeads}u;
const KV_HEADS = ${numKvHeads}u;
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> cache: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> positions: array<u32>;
@group(0) @binding(4) var<storage, read> sequence_rows: array<u32>;
@group(0) @binding(5) var<storage, read> block_tables: array<u32>;
@group(0) @binding(6) var<storage, read_write> out: array<vec4<f32>>;
var<workgroup> tops: array<f32, LANES>;
var<workgroup> sums: array<f32, LANES>;
var<workgroup> parts: array<vec4<f32>, LANES * D4>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let head = group.y;
  let kv_head = head / ${numHeads / numKvHeads}u;
  let split = lane % SPLITS;
  let token = group.x * TOKENS + lane / SPLITS;
  let valid = token < counts.tokens;
  let base = (select(0u, token, valid) * HEADS + head) * D4;
  var query: array<vec4<f32>, D4>;
  var acc: array<vec4<f32>, D4>;
  var top = -3.0e38;
  var sum = 0.0;
  if (valid) {
    for (var d = 0u; d < ${columns}; d++) { query[d] = q[base + d] * ${headDim ** -0.5}; }
    let table = sequence_rows[token] * ${blocksPerSequence}u;
    let last = positions[token];
    for (var key = split; key <= last; key += SPLITS) {
      let slot = block_tables[table + key / ${blockSize}u] * ${blockSize}u + key % ${blockSize}u;
      let k = (slot * 2u * KV_HEADS + kv_head) * D4;
      let v = k + KV_HEADS * D4;
      // Zeroed by hand: some compilers keep the value of a loop's variable from one round to the next.
      var score = 0.0;
      for (var d = 0u; d < ${columns}; d++) { score += dot(query[d], cache[k + d]); }
      let highest = max(top, score);
      let fade = exp(top - highest);
      let p = exp(score - highest);
      sum = sum * fade + p;
      for (var d = 0u; d < ${columns}; d++) { acc[d] = acc[d] * fade + p * cache[v + d]; }
      top = highest;
    }
  }
  tops[lane] = top;
  sums[lane] = sum;
  for (var d = 0u; d < ${columns}; d++) { parts[lane * D4 + d] = acc[d]; }
  workgroupBarrier();
  if (!valid) { return; }
  // The token's lanes put its parts together, each for its share of the columns.
  let first = lane - split;
  var highest = -3.0e38;
  for (var s = 0u; s < SPLITS; s++) { highest = max(highest, tops[first + s]); }
  var all = 0.0;
  for (var s = 0u; s < SPLITS; s++) { all += sums[first + s] * exp(tops[first + s] - highest); }
  for (var d = split; d < D4; d += SPLITS) {
    var value = vec4<f32>();
    for (var s = 0u; s < SPLITS; s++) {
      value += parts[(first + s) * D4 + d] * exp(tops[first + s] - highest);
    }
    out[base + d] = value / all;
  }
}`,
  };
}
