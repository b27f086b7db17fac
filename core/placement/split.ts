/** Which copy takes how many rows of the batch at hand. */

import type { CopyTable, SplitCosts } from "./copy-table.ts";

/** Rounds over the experts with several copies. */
const ROUNDS = 4;

/**
 * Pairs that each copy takes of each expert's `counts` so that the slowest shard is done soonest [numCopies]. A shard
 * that gets nothing costs nothing: few pairs stay on few shards. The same counts give the same answer; the array
 * is the table's own and stands until the next choice.
 */
export function chooseReplicas(
  counts: ArrayLike<number>,
  table: CopyTable,
  costs: SplitCosts,
): Float64Array {
  const { offsets, shards, shared, scratch } = table;
  const { pairs, seconds } = scratch;
  seconds.fill(0);
  for (let expert = 0; expert + 1 < offsets.length; expert++) {
    const from = offsets[expert];
    const count = counts[expert];
    for (let copy = from; copy < offsets[expert + 1]; copy++) pairs[copy] = 0;
    if (count === 0 || offsets[expert + 1] !== from + 1) continue;
    pairs[from] = count;
    const shard = shards[from];
    if (seconds[shard] === 0) seconds[shard] = costs.fixed[shard];
    seconds[shard] += costs.perExpert[shard] + count * (costs.perPair[shard] + costs.perRow[shard]);
  }
  for (let round = 0; round < ROUNDS; round++) {
    for (const expert of shared) {
      if (counts[expert] > 0) fillCopies(expert, counts[expert], table, costs);
    }
  }
  for (const expert of shared)
    if (counts[expert] > 0) makeWhole(expert, counts[expert], table, costs);
  return pairs;
}

/** Pours one expert's pairs over its copies up to one level of seconds, beside what the others have there. */
function fillCopies(expert: number, count: number, table: CopyTable, costs: SplitCosts): void {
  const { offsets, shards, scratch } = table;
  const { pairs, seconds } = scratch;
  const from = offsets[expert];
  const to = offsets[expert + 1];
  for (let copy = from; copy < to; copy++) {
    if (pairs[copy] > 0) seconds[shards[copy]] -= secondsOf(shards[copy], pairs[copy], costs);
  }
  let level = Infinity;
  for (;;) {
    let rate = 0;
    let filled = 0;
    for (let copy = from; copy < to; copy++) {
      const base = baseOf(shards[copy], seconds, costs);
      if (!(base < level)) continue;
      const each = 1 / (costs.perPair[shards[copy]] + costs.perRow[shards[copy]]);
      rate += each;
      filled += base * each;
    }
    const next = (count + filled) / rate;
    if (!(next < level)) break;
    level = next;
  }
  for (let copy = from; copy < to; copy++) {
    const shard = shards[copy];
    const room = level - baseOf(shard, seconds, costs);
    // Where no copy can be reached, the first one takes all.
    pairs[copy] =
      level === Infinity
        ? copy === from
          ? count
          : 0
        : Math.max(0, room) / (costs.perPair[shard] + costs.perRow[shard]);
  }
  for (let copy = from; copy < to; copy++) {
    if (pairs[copy] === 0) continue;
    const shard = shards[copy];
    if (seconds[shard] === 0) seconds[shard] = costs.fixed[shard];
    seconds[shard] += secondsOf(shard, pairs[copy], costs);
  }
}

/** Seconds of a shard before an expert's first pair there. */
function baseOf(
  shard: number,
  seconds: Float64Array,
  { fixed, perHop, perExpert }: SplitCosts,
): number {
  const before = seconds[shard] === 0 ? fixed[shard] + perHop[shard] : seconds[shard];
  return before + perExpert[shard];
}

function secondsOf(shard: number, pairs: number, costs: SplitCosts): number {
  return costs.perExpert[shard] + pairs * (costs.perPair[shard] + costs.perRow[shard]);
}

/** Rounds one expert's pairs to whole ones with the same sum; what is left goes where it is done soonest. */
function makeWhole(expert: number, count: number, table: CopyTable, costs: SplitCosts): void {
  const { offsets, shards, scratch } = table;
  const { pairs, seconds } = scratch;
  const from = offsets[expert];
  const to = offsets[expert + 1];
  let left = count;
  for (let copy = from; copy < to; copy++) {
    const shard = shards[copy];
    const each = costs.perPair[shard] + costs.perRow[shard];
    const whole = Math.floor(pairs[copy] + 1e-9);
    seconds[shard] += (whole - pairs[copy]) * each;
    pairs[copy] = whole;
    left -= whole;
  }
  for (; left > 0; left--) {
    let best = from;
    let soonest = Infinity;
    for (let copy = from; copy < to; copy++) {
      const shard = shards[copy];
      const touched = pairs[copy] > 0 ? seconds[shard] : baseOf(shard, seconds, costs);
      const then = touched + costs.perPair[shard] + costs.perRow[shard];
      if (then >= soonest) continue;
      best = copy;
      soonest = then;
    }
    pairs[best]++;
    seconds[shards[best]] = soonest;
  }
}
