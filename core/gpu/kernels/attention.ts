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
  /**
   * `one` token per workgroup, for decodes; `several` that share the keys and values that are loaded, for prompts; or one
   * per workgroup where it stands `alone`, as no neighbour in the batch is of its sequence, and nothing for the others.
   */
  readonly tokens: "one" | "several" | "alone";
  /** Lanes of a workgroup: many wait for memory together, few have more to compute on each load. */
  readonly lanes: 32 | 128;
}

/** What every kernel of attention binds, as `attention` says; sinks beside it. */
export const BINDINGS = /* wgsl */ `@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> cache: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> positions: array<u32>;
@group(0) @binding(4) var<storage, read> sequence_rows: array<u32>;
@group(0) @binding(5) var<storage, read> block_tables: array<u32>;
@group(0) @binding(6) var<storage, read_write> out: array<vec4<f32>>;`;

/** The query head of a workgroup's row: rows of a token stand one after the other, the last tile's may repeat a head. */
export const HEAD_OF = /* wgsl */ `fn head_of(tile: u32, row: u32) -> u32 {
  return tile / HEAD_TILES * GROUP + min(tile % HEAD_TILES * HEADS + row % HEADS, GROUP - 1u);
}`;

/** How rows begin with a sink and without. */
export const SINKS = {
  none: { binding: "", top: "LOWEST", sum: "0.0" },
  some: {
    binding: "@group(0) @binding(7) var<storage, read> sinks: array<f32>; // [numHeads]",
    top: "sinks[head_of(group.y, row)]",
    // A sink is a key before all others: its exp(sink - top) is 1 as long as it is the top.
    sum: "select(0.0, 1.0, split == 0u)",
  },
} as const;

/** Whether a token stands beside another one of its sequence. */
export const HAS_NEIGHBOUR = /* wgsl */ `
fn has_neighbour(token: u32) -> bool {
  let before = max(token, 1u) - 1u;
  let after = min(token + 1u, counts.tokens - 1u);
  let own = sequence_rows[token];
  return (before < token && sequence_rows[before] == own) || (after > token && sequence_rows[after] == own);
}`;

/** How workgroups begin that take all tokens, and those that take tokens that stand alone. */
const TAKES = {
  all: { functions: "", check: "" },
  alone: { functions: HAS_NEIGHBOUR, check: "if (has_neighbour(run.x)) { return; }" },
} as const;

/** Keys of a round. */
const KEYS = 128;
/** Rows of a workgroup at most: what a lane keeps of them in registers. */
const MAX_ROWS = 4;

/**
 * Causal attention over the paged cache with online softmax, for prefill chunks and decodes in one batch.
 *
 * 0 counts; 1 q f32 [numTokens, numHeads, keyDim]; 2 cache f32 [numSlots, slotWidth]; 3 positions u32 [numTokens];
 * 4 sequenceRows u32 [numTokens]; 5 blockTables u32 [numSequences, blocksPerSequence];
 * 6 out f32 [numTokens, numHeads, valueDim]; 7 sinks f32 [numHeads] (sinks)
 * A workgroup computes *rows*: some query heads of one KV head, of one or several consecutive tokens of one sequence.
 * It takes the keys in rounds: scores of all rows against the lane's keys, then the softmax of the round, then every
 * lane adds up some columns over every SPLITS-th four keys of the round. What is computed in which
 * order depends on a key's position and not on the rows beside it: a token's result has the same bits in whatever batch
 * it comes.
 */
export function attention(options: AttentionOptions): Kernel<StepSizes> {
  const { numHeads, numKvHeads, keyDim, valueDim, slotWidth, valuesAt, blockSize, lanes } = options;
  const group = numHeads / numKvHeads;
  const headTiles = ceilDiv(group, MAX_ROWS);
  const heads = ceilDiv(group, headTiles);
  const tokens = options.tokens === "several" ? Math.floor(MAX_ROWS / heads) : 1;
  const takes = TAKES[options.tokens === "alone" ? "alone" : "all"];
  const rows = tokens * heads;
  const columns = Math.min(lanes, 2 ** Math.ceil(Math.log2(valueDim / 4)));
  const columnBlocks = ceilDiv(valueDim / 4, columns);
  const sinks = SINKS[options.sinks ? "some" : "none"];
  return {
    label: `attention ${numHeads}/${numKvHeads}×${keyDim} ${tokens}×${heads}`,
    workgroupBytes: (rows * (KEYS + 1) + KEYS + lanes + rows * lanes * (1 + 4 * columnBlocks)) * 4,
    grid: (sizes) => [ceilDiv(sizes.tokens, tokens), numKvHeads * headTiles, tokens],
    wgsl: /* wgsl */ `
${COUNTS}
const LANES = ${lanes}u;
const KEYS = ${KEYS}u;
const PER_LANE = KEYS / LANES;
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
${BINDINGS}
${sinks.binding}
var<workgroup> scores: array<f32, ROWS * KEYS>; // then probabilities
var<workgroup> slots: array<u32, KEYS>;
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

${takes.functions}
${HEAD_OF}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let run = run_of(group.x, group.z);
  if (run.x == run.y) { return; }
  ${takes.check}
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
  let row = min(lane / PER_ROW, ROWS - 1u);
  let share = select(KEYS, lane % PER_ROW, lane < PER_ROW * ROWS);
  var top = ${sinks.top};
  for (var first = start / KEYS * KEYS; first <= last; first += KEYS) {
    var k: array<u32, PER_LANE>;
    for (var i = 0u; i < PER_LANE; i++) {
      // Keys beyond the last one are read as the last one is, and count nothing.
      let place = min(first + lane * PER_LANE + i, last);
      let slot = block_tables[table + place / ${blockSize}u] * ${blockSize}u + place % ${blockSize}u;
      slots[lane * PER_LANE + i] = slot * SLOT4;
      k[i] = slot * SLOT4 + kv_head * KEY4;
    }
    // Zeroed by hand: some compilers keep the value of a loop's variable from one round to the next.
    var score: array<f32, ROWS * PER_LANE>;
    for (var r = 0u; r < ROWS * PER_LANE; r++) { score[r] = 0.0; }
    // A loop without rounds instead of a branch: software GPUs compute both sides of a branch.
    let columns = select(0u, KEY4, first + lane * PER_LANE <= last);
    for (var d = 0u; d < columns; d++) {
      var part: array<vec4<f32>, PER_LANE>;
      for (var i = 0u; i < PER_LANE; i++) { part[i] = cache[k[i] + d]; }
      for (var r = 0u; r < ROWS; r++) {
        let of_row = q[query[r] + d];
        for (var i = 0u; i < PER_LANE; i++) { score[r * PER_LANE + i] += dot(of_row, part[i]); }
      }
    }
    for (var r = 0u; r < ROWS; r++) {
      for (var i = 0u; i < PER_LANE; i++) {
        let key = first + lane * PER_LANE + i;
        let seen = key <= position[r] && ${options.window === undefined ? "true" : `key + ${options.window}u > position[r]`};
        scores[r * KEYS + lane * PER_LANE + i] = select(LOWEST, score[r * PER_LANE + i] * ${options.scale}, seen);
      }
    }
    workgroupBarrier();
    var highest = LOWEST;
    for (var j = share; j < KEYS; j += PER_ROW) { highest = max(highest, scores[row * KEYS + j]); }
    tops[lane] = highest;
    workgroupBarrier();
    highest = top;
    for (var j = 0u; j < PER_ROW + counts.zero; j++) { highest = max(highest, tops[row * PER_ROW + j]); }
    for (var j = share; j < KEYS; j += PER_ROW) {
      let s = scores[row * KEYS + j];
      scores[row * KEYS + j] = select(exp(s - highest), 0.0, s == LOWEST);
    }
    // Exactly 1 where the top stays: a round without a key for the row changes nothing.
    if (share == 0u) { fades[row] = select(exp(top - highest), 1.0, top == highest); }
    top = highest;
    workgroupBarrier();
    for (var r = 0u; r < ROWS; r++) {
      sum[r] *= fades[r];
      for (var b = 0u; b < COLUMN_BLOCKS; b++) { acc[r * COLUMN_BLOCKS + b] *= fades[r]; }
    }
    let end = min(KEYS, last + 1u - first);
    for (var j = split * 4u; j < end; j += SPLITS * 4u) {
      var p: array<vec4<f32>, ROWS>;
      for (var r = 0u; r < ROWS; r++) {
        let at = r * KEYS + j;
        p[r] = vec4<f32>(scores[at], scores[at + 1u], scores[at + 2u], scores[at + 3u]);
        sum[r] += p[r].x + p[r].y + p[r].z + p[r].w;
      }
      for (var b = 0u; b < COLUMN_BLOCKS; b++) {
        let v = ${valuesAt / 4}u + kv_head * VALUE4 + min(column + b * COLUMNS, VALUE4 - 1u);
        let v0 = cache[slots[j] + v];
        let v1 = cache[slots[j + 1u] + v];
        let v2 = cache[slots[j + 2u] + v];
        let v3 = cache[slots[j + 3u] + v];
        for (var r = 0u; r < ROWS; r++) {
          acc[r * COLUMN_BLOCKS + b] += p[r].x * v0 + p[r].y * v1 + p[r].z * v2 + p[r].w * v3;
        }
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
