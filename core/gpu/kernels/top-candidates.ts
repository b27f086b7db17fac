import type { Kernel } from "../kernel.ts";
import { COUNTS, type StepSizes } from "./counts.ts";

export interface TopCandidatesOptions {
  readonly vocabSize: number;
  /** Columns of a row of logits, at least vocabSize. */
  readonly rowStride: number;
  /** Candidates that a row has room for. */
  readonly maxCandidates: number;
}

const LANES = 64;

/** u32 of a row of the result: ids, logit bits, then logSumExp and target logit bits. */
export function candidateStride(maxCandidates: number): number {
  return 2 * maxCandidates + 2;
}

/**
 * The most likely tokens of each row of logits, by logit descending, ties by lower id; log-sum-exp; one wanted logit.
 *
 * 0 counts; 1 logits f32 [numSamples, rowStride]; 2 wanted u32 [numSamples, 2] (number of candidates, target id or NONE);
 * 3 out u32 [numSamples, candidateStride]
 * A workgroup looks at one row. Each lane keeps the best token of its share that has not been taken; the owner of the
 * best of all takes it and looks for its next.
 */
export function topCandidates(options: TopCandidatesOptions): Kernel<StepSizes> {
  const { vocabSize, rowStride, maxCandidates } = options;
  return {
    label: "top-candidates",
    grid: (sizes) => [sizes.samples, 1, 1],
    wgsl: /* wgsl */ `
${COUNTS}
const LANES = ${LANES}u;
const V = ${vocabSize}u;
const ROW = ${rowStride}u;
const ROOM = ${maxCandidates}u;
const STRIDE = ${candidateStride(maxCandidates)}u;
const LOWEST = -3.4e38;
@group(0) @binding(1) var<storage, read> logits: array<f32>;
@group(0) @binding(2) var<storage, read> wanted: array<vec2<u32>>;
@group(0) @binding(3) var<storage, read_write> out: array<u32>;
var<workgroup> best: array<f32, LANES>;
var<workgroup> best_id: array<u32, LANES>;
var<workgroup> sums: array<f32, LANES>;
var<workgroup> number: u32;

/* The best token of the lane's share that comes after (value, id) in the order of the result. */
fn next_after(row: u32, lane: u32, value: f32, id: u32) -> vec2<u32> {
  var found = LOWEST;
  var found_id = NONE;
  for (var i = lane; i < V; i += LANES) {
    let logit = logits[row * ROW + i];
    let after = logit < value || (logit == value && i > id);
    if (after && logit > found) { found = logit; found_id = i; }
  }
  return vec2<u32>(bitcast<u32>(found), found_id);
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let row = group.x;
  if (row >= counts.samples) { return; }
  if (lane == 0u) { number = min(wanted[row].x, ROOM); }
  var mine = vec2<u32>(bitcast<u32>(LOWEST), NONE);
  {
    var found = LOWEST;
    for (var i = lane; i < V; i += LANES) {
      let logit = logits[row * ROW + i];
      if (logit > found) { found = logit; mine = vec2<u32>(bitcast<u32>(logit), i); }
    }
  }
  best[lane] = bitcast<f32>(mine.x);
  best_id[lane] = mine.y;
  workgroupBarrier();
  var top = LOWEST;
  for (var l = 0u; l < LANES + counts.zero; l++) { top = max(top, best[l]); }
  var sum = 0.0;
  for (var i = lane; i < V; i += LANES) { sum += exp(logits[row * ROW + i] - top); }
  sums[lane] = sum;
  let rounds = workgroupUniformLoad(&number);
  if (lane == 0u) {
    var all = 0.0;
    for (var l = 0u; l < LANES + counts.zero; l++) { all += sums[l]; }
    out[row * STRIDE + 2u * ROOM] = bitcast<u32>(top + log(all));
    let target_id = wanted[row].y;
    if (target_id < V) {
      out[row * STRIDE + 2u * ROOM + 1u] = bitcast<u32>(logits[row * ROW + target_id]);
    }
  }
  for (var n = 0u; n < rounds; n++) {
    var value = LOWEST;
    var id = NONE;
    for (var l = 0u; l < LANES + counts.zero; l++) {
      if (best[l] > value || (best[l] == value && best_id[l] < id)) { value = best[l]; id = best_id[l]; }
    }
    workgroupBarrier();
    if (id != NONE && id % LANES == lane) {
      out[row * STRIDE + n] = id;
      out[row * STRIDE + ROOM + n] = bitcast<u32>(value);
      mine = next_after(row, lane, value, id);
      best[lane] = bitcast<f32>(mine.x);
      best_id[lane] = mine.y;
    }
    workgroupBarrier();
  }
}`,
  };
}
