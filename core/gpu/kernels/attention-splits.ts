import type { Kernel } from "../kernel.ts";
import { type AttentionOptions, BINDINGS, SINKS } from "./attention.ts";
import { ceilDiv, COUNTS, type StepSizes } from "./counts.ts";

/** Lanes that share the keys of a token: lane s takes the keys whose position is s modulo SPLITS. */
const SPLITS = 8;
/** Query heads of a workgroup at most. */
const MAX_HEADS = 4;
/** vec4 of queries, and of results, that a lane keeps: more take compilers a minute to unroll. */
const MAX_KEPT = 32;

/** Whether heads are narrow enough for `attentionSplits`. */
export function fitsSplits({
  keyDim,
  valueDim,
}: Pick<AttentionOptions, "keyDim" | "valueDim">): boolean {
  return Math.max(keyDim, valueDim) / 4 <= MAX_KEPT / 2;
}

/**
 * What `attention` computes, with the same bindings, for GPUs that load for one lane after the other: every lane keeps
 * queries and results of all heads that share its keys, so that a key is loaded once for them, and waits for nobody
 * until its keys are through. A workgroup computes one token; `tokens` and `lanes` mean nothing here.
 */
export function attentionSplits(options: AttentionOptions): Kernel<StepSizes> {
  const { numHeads, numKvHeads, keyDim, valueDim, slotWidth, valuesAt, blockSize, window } =
    options;
  const group = numHeads / numKvHeads;
  const kept = Math.max(1, Math.floor(MAX_KEPT / (Math.max(keyDim, valueDim) / 4)));
  const headTiles = ceilDiv(group, Math.min(MAX_HEADS, kept));
  const heads = ceilDiv(group, headTiles);
  const sinks = SINKS[options.sinks ? "some" : "none"];
  return {
    label: `attention-splits ${numHeads}/${numKvHeads}×${keyDim} ×${heads}`,
    workgroupBytes: SPLITS * heads * (2 + valueDim) * 4,
    grid: (sizes) => [sizes.tokens, numKvHeads * headTiles, 1],
    wgsl: /* wgsl */ `
${COUNTS}
const SPLITS = ${SPLITS}u;
const HEADS = ${heads}u; // query heads of a workgroup
const ALL_HEADS = ${numHeads}u;
const GROUP = ${group}u; // query heads of a KV head
const HEAD_TILES = ${headTiles}u;
const KEY4 = ${keyDim / 4}u;
const VALUE4 = ${valueDim / 4}u;
const SLOT4 = ${slotWidth / 4}u;
const LOWEST = -3.0e38;
${BINDINGS}
${sinks.binding}
var<workgroup> tops: array<f32, HEADS * SPLITS>;
var<workgroup> sums: array<f32, HEADS * SPLITS>;
var<workgroup> parts: array<vec4<f32>, HEADS * VALUE4 * SPLITS>;

fn head_of(tile: u32, row: u32) -> u32 {
  return tile / HEAD_TILES * GROUP + min(tile % HEAD_TILES * HEADS + row, GROUP - 1u);
}

@compute @workgroup_size(SPLITS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) split: u32) {
  let token = group.x;
  let kv_head = group.y / HEAD_TILES;
  let table = sequence_rows[token] * ${options.blocksPerSequence}u;
  let last = positions[token];
  let start = last - min(last, ${(window ?? 2 ** 31) - 1}u);
  var query: array<vec4<f32>, HEADS * KEY4>;
  var acc: array<vec4<f32>, HEADS * VALUE4>;
  var top: array<f32, HEADS>;
  var sum: array<f32, HEADS>;
  for (var row = 0u; row < HEADS; row++) {
    let base = (token * ALL_HEADS + head_of(group.y, row)) * KEY4;
    for (var d = 0u; d < KEY4; d++) { query[row * KEY4 + d] = q[base + d] * ${options.scale}; }
    top[row] = ${sinks.top};
    sum[row] = ${sinks.sum};
  }
  for (var key = start + (split + SPLITS - start % SPLITS) % SPLITS; key <= last; key += SPLITS) {
    let slot = block_tables[table + key / ${blockSize}u] * ${blockSize}u + key % ${blockSize}u;
    let k = slot * SLOT4 + kv_head * KEY4;
    let v = slot * SLOT4 + ${valuesAt / 4}u + kv_head * VALUE4;
    // Zeroed by hand: some compilers keep the value of a loop's variable from one round to the next.
    var score: array<f32, HEADS>;
    for (var r = 0u; r < HEADS; r++) { score[r] = 0.0; }
    for (var d = 0u; d < KEY4; d++) {
      let part = cache[k + d];
      for (var r = 0u; r < HEADS; r++) { score[r] += dot(query[r * KEY4 + d], part); }
    }
    var fade: array<f32, HEADS>;
    for (var r = 0u; r < HEADS; r++) {
      let highest = max(top[r], score[r]);
      fade[r] = exp(top[r] - highest);
      score[r] = exp(score[r] - highest);
      sum[r] = sum[r] * fade[r] + score[r];
      top[r] = highest;
    }
    for (var d = 0u; d < VALUE4; d++) {
      let part = cache[v + d];
      for (var r = 0u; r < HEADS; r++) {
        acc[r * VALUE4 + d] = acc[r * VALUE4 + d] * fade[r] + score[r] * part;
      }
    }
  }
  for (var r = 0u; r < HEADS; r++) {
    tops[r * SPLITS + split] = top[r];
    sums[r * SPLITS + split] = sum[r];
    for (var d = 0u; d < VALUE4; d++) { parts[(r * VALUE4 + d) * SPLITS + split] = acc[r * VALUE4 + d]; }
  }
  workgroupBarrier();
  // Every lane puts the splits' parts together for its share of the columns.
  for (var at = split; at < HEADS * VALUE4; at += SPLITS) {
    let r = at / VALUE4;
    if (group.y % HEAD_TILES * HEADS + r >= GROUP) { continue; }
    var highest = LOWEST;
    for (var s = 0u; s < SPLITS + counts.zero; s++) { highest = max(highest, tops[r * SPLITS + s]); }
    var all = 0.0;
    var value = vec4<f32>();
    for (var s = 0u; s < SPLITS + counts.zero; s++) {
      let factor = exp(tops[r * SPLITS + s] - highest);
      all += sums[r * SPLITS + s] * factor;
      value += parts[at * SPLITS + s] * factor;
    }
    out[(token * ALL_HEADS + head_of(group.y, r)) * VALUE4 + at % VALUE4] = value / all;
  }
}`,
  };
}
