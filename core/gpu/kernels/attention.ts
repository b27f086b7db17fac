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

/** Keys that a workgroup looks at together, one per lane. */
const LANES = 64;

/**
 * Causal attention over the paged cache with online softmax, for prefill chunks and decodes in one batch.
 *
 * 0 counts; 1 q f32 [numTokens, numHeads·headDim]; 2 cache f32 [numSlots, 2, numKvHeads·headDim], k before v;
 * 3 positions u32 [numTokens]; 4 sequenceRows u32 [numTokens]; 5 blockTables u32 [numSequences, blocksPerSequence];
 * 6 out f32 [numTokens, numHeads·headDim]
 * A workgroup computes the query heads that share one KV head, of one token.
 */
export function attention(options: AttentionOptions): Kernel<StepSizes> {
  const { numHeads, numKvHeads, headDim, blockSize, blocksPerSequence } = options;
  const group = numHeads / numKvHeads;
  return {
    label: `attention ${numHeads}/${numKvHeads}×${headDim}`,
    grid: (sizes) => [numKvHeads, sizes.tokens, 1],
    wgsl: /* wgsl */ `
${COUNTS}
const LANES = ${LANES}u;
const D4 = ${headDim / 4}u;
const G = ${group}u;
const HEADS = ${numHeads}u;
const KV_HEADS = ${numKvHeads}u;
const OUTPUTS = ${ceilDiv((group * headDim) / 4, LANES)}u; // vec4 of the result per lane
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> cache: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> positions: array<u32>;
@group(0) @binding(4) var<storage, read> sequence_rows: array<u32>;
@group(0) @binding(5) var<storage, read> block_tables: array<u32>;
@group(0) @binding(6) var<storage, read_write> out: array<vec4<f32>>;
var<workgroup> query: array<vec4<f32>, G * D4>;
var<workgroup> slots: array<u32, LANES>;
var<workgroup> p: array<f32, G * LANES>;
var<workgroup> top: array<f32, G>;
var<workgroup> sum: array<f32, G>;
var<workgroup> fade: array<f32, G>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let kv_head = id.x;
  let token = id.y;
  if (token >= counts.tokens) { return; }
  let last = positions[token];
  let table = sequence_rows[token] * ${blocksPerSequence}u;
  let base = (token * HEADS + kv_head * G) * D4;
  for (var i = lane; i < G * D4; i += LANES) { query[i] = q[base + i] * ${headDim ** -0.5}; }
  if (lane < G) { top[lane] = -3.0e38; sum[lane] = 0.0; }
  var acc: array<vec4<f32>, OUTPUTS>;
  workgroupBarrier();

  for (var tile = 0u; tile <= last / LANES; tile++) {
    // A lane beyond the last key looks at the last one again, with probability zero.
    let key = min(tile * LANES + lane, last);
    let slot = block_tables[table + key / ${blockSize}u] * ${blockSize}u + key % ${blockSize}u;
    slots[lane] = slot;
    let k = (slot * 2u * KV_HEADS + kv_head) * D4;
    // Zeroed by hand: a variable declared in a loop keeps its value from one round to the next in some compilers.
    var score = array<f32, G>();
    for (var d = 0u; d < D4 + counts.zero; d++) {
      let kd = cache[k + d];
      for (var g = 0u; g < G; g++) { score[g] += dot(query[g * D4 + d], kd); }
    }
    let valid = tile * LANES + lane <= last;
    for (var g = 0u; g < G; g++) { p[g * LANES + lane] = select(-3.0e38, score[g], valid); }
    workgroupBarrier();
    if (lane < G) {
      var highest = top[lane];
      for (var j = 0u; j < LANES + counts.zero; j++) { highest = max(highest, p[lane * LANES + j]); }
      fade[lane] = exp(top[lane] - highest);
      top[lane] = highest;
    }
    workgroupBarrier();
    for (var g = 0u; g < G; g++) {
      p[g * LANES + lane] = select(0.0, exp(p[g * LANES + lane] - top[g]), valid);
    }
    workgroupBarrier();
    if (lane < G) {
      var all = 0.0;
      for (var j = 0u; j < LANES + counts.zero; j++) { all += p[lane * LANES + j]; }
      sum[lane] = sum[lane] * fade[lane] + all;
    }
    for (var o = 0u; o < OUTPUTS; o++) {
      let i = o * LANES + lane;
      if (i < G * D4) {
        let g = i / D4;
        let d = i % D4;
        var value = acc[o] * fade[g];
        for (var j = 0u; j < LANES + counts.zero; j += 4u) {
          let v0 = cache[((slots[j] * 2u + 1u) * KV_HEADS + kv_head) * D4 + d];
          let v1 = cache[((slots[j + 1u] * 2u + 1u) * KV_HEADS + kv_head) * D4 + d];
          let v2 = cache[((slots[j + 2u] * 2u + 1u) * KV_HEADS + kv_head) * D4 + d];
          let v3 = cache[((slots[j + 3u] * 2u + 1u) * KV_HEADS + kv_head) * D4 + d];
          value += p[g * LANES + j] * v0 + p[g * LANES + j + 1u] * v1
            + p[g * LANES + j + 2u] * v2 + p[g * LANES + j + 3u] * v3;
        }
        acc[o] = value;
      }
    }
    workgroupBarrier();
  }
  for (var o = 0u; o < OUTPUTS; o++) {
    let i = o * LANES + lane;
    if (i < G * D4) { out[base + i] = acc[o] / sum[i / D4]; }
  }
}`,
  };
}
