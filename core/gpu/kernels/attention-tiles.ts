import type { Kernel } from "../kernel.ts";
import { type AttentionOptions, BINDINGS, HAS_NEIGHBOUR, HEAD_OF, SINKS } from "./attention.ts";
import { ceilDiv, COUNTS, type StepSizes } from "./counts.ts";

/** Rows of a workgroup; a *row* is one query head of one token. */
const ROWS = 32;
/** Keys of a round. */
const KEYS = 64;
/** Widest value: what lanes keep of a result in registers. */
const MAX_VALUE_DIM = 512;

/** How a workgroup's tile is cut. */
export interface AttentionTile {
  /** Columns of queries and keys that are staged at a time: 16 needs 16 KiB of workgroup memory, 32 needs 22. */
  readonly staged: 16 | 32;
}

/** Whether values are narrow enough for `attentionTiles`. */
export function fitsTiles({ valueDim }: Pick<AttentionOptions, "valueDim">): boolean {
  return valueDim <= MAX_VALUE_DIM;
}

/**
 * What `attention` computes, with the same bindings, for tokens that stand beside others of their sequence; the rest of
 * the result is left as it is (`tokens: "alone"` computes it). For GPUs whose workgroup memory is fast: a workgroup
 * walks over the keys once for 32 rows, which are query heads of one KV head, of consecutive tokens. Queries and keys
 * meet in workgroup memory, a slice of columns at a time; four rows by some keys of scores and every column of some
 * rows of the result stay in registers (FlashAttention-2, arXiv 2307.08691, 3.1). What is computed in which order
 * depends on a key's position and not on the rows beside it. `lanes` means nothing here.
 */
export function attentionTiles(
  options: Omit<AttentionOptions, "tokens" | "lanes">,
  { staged }: AttentionTile,
): Kernel<StepSizes> {
  const { numHeads, numKvHeads, keyDim, valueDim, slotWidth, valuesAt, blockSize, window } =
    options;
  const group = numHeads / numKvHeads;
  const headTiles = ceilDiv(group, ROWS);
  const heads = ceilDiv(group, headTiles);
  const tokens = Math.floor(ROWS / heads);
  const lanes = valueDim > 256 ? 256 : 128;
  // A lane has four rows of the result or more.
  const columns = Math.max((lanes * 4) / ROWS, 2 ** Math.ceil(Math.log2(valueDim / 4)));
  const sinks = SINKS[options.sinks ? "some" : "none"];
  const stride = staged / 4 + 1;
  return {
    label: `attention-tiles ${numHeads}/${numKvHeads}×${keyDim} ${tokens}×${heads}`,
    workgroupBytes: ((ROWS + KEYS) * stride + (KEYS * ROWS) / 4 + ROWS / 4) * 16 + KEYS * 4,
    grid: (sizes) => [ceilDiv(sizes.tokens, tokens), numKvHeads * headTiles, 1],
    wgsl: /* wgsl */ `
${COUNTS}
const LANES = ${lanes}u;
const KEYS = ${KEYS}u;
const ROWS = ${ROWS}u;
const ROWS4 = ROWS / 4u;
const TOKENS = ${tokens}u;
const HEADS = ${heads}u; // query heads of a workgroup
const ALL_HEADS = ${numHeads}u;
const GROUP = ${group}u; // query heads of a KV head
const HEAD_TILES = ${headTiles}u;
const KEY4 = ${keyDim / 4}u;
const VALUE4 = ${valueDim / 4}u;
const SLOT4 = ${slotWidth / 4}u;
const STAGED4 = ${staged / 4}u;
const STRIDE = ${stride}u; // odd: lanes that read neighbouring rows meet different banks
const KEY_LANES = LANES / ROWS4; // lanes of four rows' scores
const PER_LANE = KEYS / KEY_LANES;
const COLUMNS = ${columns}u; // lanes beside each other in the columns of the result
const KEPT4 = ROWS4 / (LANES / COLUMNS); // fours of rows of the result that a lane has
const LOWEST = -3.0e38;
${BINDINGS}
${sinks.binding}
var<workgroup> queries: array<vec4<f32>, ROWS * STRIDE>;
var<workgroup> keys: array<vec4<f32>, KEYS * STRIDE>; // then what lanes tell each other
var<workgroup> probabilities: array<vec4<f32>, KEYS * ROWS4>;
var<workgroup> fades: array<vec4<f32>, ROWS4>;
var<workgroup> slots: array<u32, KEYS>;
${HAS_NEIGHBOUR}

${HEAD_OF}

// Attention of the tokens from run.x to run.y, all of one sequence.
fn attend(run: vec2<u32>, group: vec3<u32>, lane: u32) {
  let kv_head = group.y / HEAD_TILES;
  let table = sequence_rows[run.x] * ${options.blocksPerSequence}u;
  let last = positions[run.y - 1u];
  let start = positions[run.x] - min(positions[run.x], ${(window ?? 2 ** 31) - 1}u);
  // Scores and softmax: four rows by every KEY_LANES-th key.
  let own = lane / KEY_LANES;
  let split = lane % KEY_LANES;
  // The result: one column of KEPT4 fours of rows.
  let column = lane % COLUMNS;
  let kept = lane / COLUMNS * KEPT4;
  var position: vec4<u32>;
  var top: vec4<f32>;
  for (var r = 0u; r < 4u; r++) {
    let row = own * 4u + r;
    position[r] = positions[min(run.x + row / HEADS, run.y - 1u)];
    top[r] = ${sinks.top};
  }
  var sum = vec4<f32>(${sinks.sum});
  var acc: array<vec4<f32>, KEPT4 * 4u>;
  for (var r = 0u; r < KEPT4 * 4u; r++) { acc[r] = vec4<f32>(); }
  for (var first = start / KEYS * KEYS; first <= last; first += KEYS) {
    if (lane < KEYS) {
      // Keys beyond the last one are read as the last one is, and count nothing.
      let place = min(first + lane, last);
      let slot = block_tables[table + place / ${blockSize}u] * ${blockSize}u + place % ${blockSize}u;
      slots[lane] = slot * SLOT4;
    }
    workgroupBarrier();
    // Zeroed by hand: some compilers keep the value of a loop's variable from one round to the next.
    var score: array<vec4<f32>, PER_LANE>;
    for (var i = 0u; i < PER_LANE; i++) { score[i] = vec4<f32>(); }
    for (var base = 0u; base < KEY4; base += STAGED4) {
      // Columns beyond the last one are zeros.
      for (var i = lane; i < KEYS * STAGED4; i += LANES) {
        let c = base + i % STAGED4;
        let part = cache[slots[i / STAGED4] + kv_head * KEY4 + min(c, KEY4 - 1u)];
        keys[i / STAGED4 * STRIDE + i % STAGED4] = select(vec4<f32>(), part, c < KEY4);
      }
      for (var i = lane; i < ROWS * STAGED4; i += LANES) {
        let row = i / STAGED4;
        let c = base + i % STAGED4;
        let token = min(run.x + row / HEADS, run.y - 1u);
        let part = q[(token * ALL_HEADS + head_of(group.y, row)) * KEY4 + min(c, KEY4 - 1u)];
        queries[row * STRIDE + i % STAGED4] = select(vec4<f32>(), part, c < KEY4);
      }
      workgroupBarrier();
      for (var c = 0u; c < STAGED4 + counts.zero; c++) {
        let q0 = queries[own * 4u * STRIDE + c];
        let q1 = queries[(own * 4u + 1u) * STRIDE + c];
        let q2 = queries[(own * 4u + 2u) * STRIDE + c];
        let q3 = queries[(own * 4u + 3u) * STRIDE + c];
        for (var i = 0u; i < PER_LANE; i++) {
          let k = keys[(split + i * KEY_LANES) * STRIDE + c];
          score[i] += vec4<f32>(dot(q0, k), dot(q1, k), dot(q2, k), dot(q3, k));
        }
      }
      workgroupBarrier();
    }
    var highest = vec4<f32>(LOWEST);
    for (var i = 0u; i < PER_LANE; i++) {
      let key = vec4<u32>(first + split + i * KEY_LANES);
      let seen = (key <= position) & ${window === undefined ? "vec4<bool>(true)" : `(key + ${window}u > position)`};
      score[i] = select(vec4<f32>(LOWEST), score[i] * ${options.scale}, seen);
      highest = max(highest, score[i]);
    }
    keys[lane] = highest;
    workgroupBarrier();
    highest = top;
    for (var j = 0u; j < KEY_LANES + counts.zero; j++) { highest = max(highest, keys[own * KEY_LANES + j]); }
    // Exactly 1 where the top stays: a round without a key for the row changes nothing.
    let fade = select(exp(top - highest), vec4<f32>(1.0), top == highest);
    top = highest;
    sum *= fade;
    for (var i = 0u; i < PER_LANE; i++) {
      let p = select(exp(score[i] - highest), vec4<f32>(), score[i] == vec4<f32>(LOWEST));
      sum += p;
      probabilities[(split + i * KEY_LANES) * ROWS4 + own] = p;
    }
    if (split == 0u) { fades[own] = fade; }
    workgroupBarrier();
    for (var r = 0u; r < KEPT4; r++) {
      let of_row = fades[kept + r];
      acc[r * 4u] *= of_row.x;
      acc[r * 4u + 1u] *= of_row.y;
      acc[r * 4u + 2u] *= of_row.z;
      acc[r * 4u + 3u] *= of_row.w;
    }
    let v = ${valuesAt / 4}u + kv_head * VALUE4 + min(column, VALUE4 - 1u);
    let end = min(KEYS, last + 1u - first);
    for (var j = 0u; j < end; j += 4u) {
      // Asked for together, to wait once.
      var part: array<vec4<f32>, 4>;
      for (var i = 0u; i < 4u; i++) { part[i] = cache[slots[j + i] + v]; }
      for (var i = 0u; i < 4u; i++) {
        for (var r = 0u; r < KEPT4; r++) {
          let p = probabilities[(j + i) * ROWS4 + kept + r];
          acc[r * 4u] += p.x * part[i];
          acc[r * 4u + 1u] += p.y * part[i];
          acc[r * 4u + 2u] += p.z * part[i];
          acc[r * 4u + 3u] += p.w * part[i];
        }
      }
    }
    workgroupBarrier();
  }
  keys[lane] = sum;
  workgroupBarrier();
  for (var r = 0u; r < KEPT4; r++) {
    var all = vec4<f32>();
    for (var j = 0u; j < KEY_LANES + counts.zero; j++) { all += keys[(kept + r) * KEY_LANES + j]; }
    for (var i = 0u; i < 4u; i++) {
      let row = (kept + r) * 4u + i;
      let token = run.x + row / HEADS;
      let is_head = group.y % HEAD_TILES * HEADS + row % HEADS < GROUP;
      if (token < run.y && is_head && column < VALUE4) {
        out[(token * ALL_HEADS + head_of(group.y, row)) * VALUE4 + column] = acc[r * 4u + i] / all[i];
      }
    }
  }
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let end = min((group.x + 1u) * TOKENS, counts.tokens);
  // A tile may hold tokens of several sequences.
  var next = group.x * TOKENS;
  for (var first = next; first < end; first = next) {
    next = first + 1u;
    while (next < end && sequence_rows[next] == sequence_rows[first]) { next++; }
    if (has_neighbour(first)) { attend(vec2<u32>(first, next), group, lane); }
  }
}`,
  };
}
