import type { Kernel } from "../kernel.ts";
import { ceilDiv, COUNTS, type StepSizes } from "./counts.ts";

export interface AttentionOptions {
  readonly numHeads: number;
  /** Heads of keys and values; divides numHeads. */
  readonly numKvHeads: number;
  /** Columns of a query and of a key; a multiple of 4. */
  readonly keyDim: number;
  /** Columns of a value and of a result; a multiple of 4. */
  readonly valueDim: number;
  /** Columns of a slot of the cache; keys of all KV heads stand first. */
  readonly slotWidth: number;
  /** Column of a slot where the values of all KV heads begin. */
  readonly valuesAt: number;
  /** What scores are multiplied by before the softmax. */
  readonly scale: number;
  /** Keys that a query sees, its own position included; undefined sees all. */
  readonly window?: number;
  /** Every head has a logit that takes part in the softmax and has no value. */
  readonly sinks: boolean;
  /** Tokens of a KV block. */
  readonly blockSize: number;
  /** Block ids of one row of the block tables. */
  readonly blocksPerSequence: number;
  /** `one` token per workgroup, for decodes; or `several` that share the keys and values that are loaded, for prompts. */
  readonly tokens: "one" | "several";
}

const SINKS = {
  none: { binding: "", top: "LOWEST", sum: "0.0" },
  some: {
    binding: "@group(0) @binding(7) var<storage, read> sinks: array<f32>; // [numHeads]",
    top: "sinks[head_of(group.y, row)]",
    // A sink is a key before all others: its exp(sink - top) is 1 as long as it is the top.
    sum: "select(0.0, 1.0, split == 0u)",
  },
} as const;

/** Keys of a round, one per lane. */
const LANES = 128;
/** Rows of a workgroup at most; a power of two. */
const MAX_ROWS = 4;

function powerOfTwoFrom(n: number): number {
  return 2 ** Math.ceil(Math.log2(n));
}

/**
 * Causal attention over the paged cache with online softmax, for prefill chunks and decodes in one batch.
 *
 * 0 counts; 1 q f32 [numTokens, numHeads, keyDim]; 2 cache f32 [numSlots, slotWidth]; 3 positions u32 [numTokens];
 * 4 sequenceRows u32 [numTokens]; 5 blockTables u32 [numSequences, blocksPerSequence];
 * 6 out f32 [numTokens, numHeads, valueDim]; 7 sinks f32 [numHeads] (sinks)
 * A workgroup computes *rows*: some query heads of one KV head, of one or several consecutive tokens of one sequence.
 * It takes the keys in rounds, one key per lane: scores of all rows against the lane's key, then the softmax of the
 * round, then every lane adds up some columns over every SPLITS-th four keys of the round. What is computed in which
 * order depends on a key's position and not on the rows beside it: a token's result has the same bits in whatever batch
 * it comes.
 */
export function attention(options: AttentionOptions): Kernel<StepSizes> {
  const { numHeads, numKvHeads, keyDim, valueDim, slotWidth, valuesAt, blockSize } = options;
  const group = numHeads / numKvHeads;
  const heads = Math.min(MAX_ROWS, powerOfTwoFrom(group));
  const tokens = options.tokens === "one" ? 1 : MAX_ROWS / heads;
  const rows = tokens * heads;
  const headTiles = ceilDiv(group, heads);
  const columns = Math.min(LANES, powerOfTwoFrom(valueDim / 4));
  const columnBlocks = ceilDiv(valueDim / 4, columns);
  const sinks = SINKS[options.sinks ? "some" : "none"];
  return {
    label: `attention ${numHeads}/${numKvHeads}×${keyDim} ${tokens}×${heads}`,
    workgroupBytes: (rows + 2 * LANES + rows * LANES * (2 + 4 * columnBlocks)) * 4,
    grid: (sizes) => [ceilDiv(sizes.tokens, tokens), numKvHeads * headTiles, tokens],
    wgsl: /* wgsl */ `
${COUNTS}
const LANES = ${LANES}u;
const TOKENS = ${tokens}u;
const HEADS = ${heads}u; // query heads of a workgroup
const ROWS = ${rows}u;
const ALL_HEADS = ${numHeads}u;
const GROUP = ${group}u; // query heads of a KV head
const HEAD_TILES = ${headTiles}u;
const KEY4 = ${keyDim / 4}u;
const VALUE4 = ${valueDim / 4}u;
const SLOT4 = ${slotWidth / 4}u;
const COLUMNS = ${columns}u; // lanes beside each other in the columns of the result
const COLUMN_BLOCKS = ${columnBlocks}u;
const SPLITS = LANES / COLUMNS;
const PER_ROW = LANES / ROWS; // lanes of a row's softmax
const LOWEST = -3.0e38;
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> cache: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> positions: array<u32>;
@group(0) @binding(4) var<storage, read> sequence_rows: array<u32>;
@group(0) @binding(5) var<storage, read> block_tables: array<u32>;
@group(0) @binding(6) var<storage, read_write> out: array<vec4<f32>>;
${sinks.binding}
var<workgroup> scores: array<f32, ROWS * LANES>; // then probabilities
var<workgroup> slots: array<u32, LANES>;
var<workgroup> tops: array<f32, LANES>;
var<workgroup> fades: array<f32, ROWS>;
var<workgroup> sums: array<f32, LANES * ROWS>;
var<workgroup> parts: array<vec4<f32>, LANES * COLUMN_BLOCKS * ROWS>;

// First token and end of the tile's run'th run of tokens of one sequence; nothing where it has fewer.
fn run_of(tile: u32, run: u32) -> vec2<u32> {
  let end = min((tile + 1u) * TOKENS, counts.tokens);
  var first = tile * TOKENS;
  var number = 0u;
  for (var t = first + 1u; t < end; t++) {
    if (sequence_rows[t] != sequence_rows[t - 1u]) {
      if (number == run) { return vec2<u32>(first, t); }
      number++;
      first = t;
    }
  }
  return select(vec2<u32>(), vec2<u32>(first, end), number == run);
}

fn head_of(tile: u32, row: u32) -> u32 {
  return tile / HEAD_TILES * GROUP + min(tile % HEAD_TILES * HEADS + row % HEADS, GROUP - 1u);
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let run = run_of(group.x, group.z);
  if (run.x == run.y) { return; }
  let kv_head = group.y / HEAD_TILES;
  let table = sequence_rows[run.x] * ${options.blocksPerSequence}u;
  let last = positions[run.y - 1u];
  let start = positions[run.x] - min(positions[run.x], ${(options.window ?? 2 ** 31) - 1}u);
  var query: array<u32, ROWS>;
  var position: array<u32, ROWS>;
  var sum: array<f32, ROWS>;
  var acc: array<vec4<f32>, ROWS * COLUMN_BLOCKS>;
  let column = lane % COLUMNS;
  let split = lane / COLUMNS;
  for (var r = 0u; r < ROWS; r++) {
    let token = min(run.x + r / HEADS, run.y - 1u);
    query[r] = (token * ALL_HEADS + head_of(group.y, r)) * KEY4;
    position[r] = positions[token];
    sum[r] = ${sinks.sum};
  }
  // In the softmax the lane has one row to itself.
  let row = lane / PER_ROW;
  var top = ${sinks.top};
  for (var first = start / LANES * LANES; first <= last; first += LANES) {
    // Keys beyond the last one are read as the last one is, and count nothing.
    let key = first + lane;
    let place = min(key, last);
    let slot = block_tables[table + place / ${blockSize}u] * ${blockSize}u + place % ${blockSize}u;
    slots[lane] = slot * SLOT4;
    let k = slot * SLOT4 + kv_head * KEY4;
    // Zeroed by hand: some compilers keep the value of a loop's variable from one round to the next.
    var score: array<f32, ROWS>;
    for (var r = 0u; r < ROWS; r++) { score[r] = 0.0; }
    // A loop without rounds instead of a branch: software GPUs compute both sides of a branch.
    let columns = select(0u, KEY4, key <= last);
    for (var d = 0u; d < columns; d++) {
      let part = cache[k + d];
      for (var r = 0u; r < ROWS; r++) { score[r] += dot(q[query[r] + d], part); }
    }
    for (var r = 0u; r < ROWS; r++) {
      let seen = key <= position[r] && ${options.window === undefined ? "true" : `key + ${options.window}u > position[r]`};
      scores[r * LANES + lane] = select(LOWEST, score[r] * ${options.scale}, seen);
    }
    workgroupBarrier();
    var highest = LOWEST;
    for (var j = lane % PER_ROW; j < LANES; j += PER_ROW) { highest = max(highest, scores[row * LANES + j]); }
    tops[lane] = highest;
    workgroupBarrier();
    highest = top;
    for (var j = 0u; j < PER_ROW + counts.zero; j++) { highest = max(highest, tops[row * PER_ROW + j]); }
    for (var j = lane % PER_ROW; j < LANES; j += PER_ROW) {
      let s = scores[row * LANES + j];
      scores[row * LANES + j] = select(exp(s - highest), 0.0, s == LOWEST);
    }
    // Exactly 1 where the top stays: a round without a key for the row changes nothing.
    if (lane % PER_ROW == 0u) { fades[row] = select(exp(top - highest), 1.0, top == highest); }
    top = highest;
    workgroupBarrier();
    for (var r = 0u; r < ROWS; r++) {
      sum[r] *= fades[r];
      for (var b = 0u; b < COLUMN_BLOCKS; b++) { acc[r * COLUMN_BLOCKS + b] *= fades[r]; }
    }
    let end = min(LANES, last + 1u - first);
    for (var j = split * 4u; j < end; j += SPLITS * 4u) {
      for (var b = 0u; b < COLUMN_BLOCKS; b++) {
        let v = ${valuesAt / 4}u + kv_head * VALUE4 + min(column + b * COLUMNS, VALUE4 - 1u);
        let v0 = cache[slots[j] + v];
        let v1 = cache[slots[j + 1u] + v];
        let v2 = cache[slots[j + 2u] + v];
        let v3 = cache[slots[j + 3u] + v];
        for (var r = 0u; r < ROWS; r++) {
          let p = r * LANES + j;
          acc[r * COLUMN_BLOCKS + b] += scores[p] * v0 + scores[p + 1u] * v1 + scores[p + 2u] * v2 + scores[p + 3u] * v3;
        }
      }
      for (var r = 0u; r < ROWS; r++) {
        let p = r * LANES + j;
        sum[r] += scores[p] + scores[p + 1u] + scores[p + 2u] + scores[p + 3u];
      }
    }
    workgroupBarrier();
  }
  for (var r = 0u; r < ROWS; r++) {
    sums[r * LANES + lane] = sum[r];
    for (var b = 0u; b < COLUMN_BLOCKS; b++) {
      parts[(r * COLUMN_BLOCKS + b) * LANES + lane] = acc[r * COLUMN_BLOCKS + b];
    }
  }
  workgroupBarrier();
  // Any lane for any columns of any row: each puts the splits' parts together.
  for (var at = lane; at < ROWS * VALUE4; at += LANES) {
    let r = at / VALUE4;
    let c = at % VALUE4;
    let token = run.x + r / HEADS;
    if (token >= run.y || group.y % HEAD_TILES * HEADS + r % HEADS >= GROUP) { continue; }
    var all = 0.0;
    var value = vec4<f32>();
    for (var s = 0u; s < SPLITS + counts.zero; s++) {
      all += sums[r * LANES + s * COLUMNS];
      value += parts[(r * COLUMN_BLOCKS + c / COLUMNS) * LANES + s * COLUMNS + c % COLUMNS];
    }
    out[(token * ALL_HEADS + head_of(group.y, r)) * VALUE4 + c] = value / all;
  }
}`,
  };
}
