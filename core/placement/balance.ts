/**
 * The best split of a placement. A shard's seconds grow linearly with its pairs, so the split that minimises the
 * sum over shards of seconds² / (2 · seconds per pair) has every expert on its fastest holders only: no shard's seconds
 * can shrink without a slower one's growing. Giving one expert after the other its best split, the others as they
 * are, leads there, as the sum is convex and smooth.
 */

import type { Layer } from "./layer.ts";

/** Rounds over all experts with several copies, at most. */
const MAX_ROUNDS = 60;
/** Part of the slowest shard's seconds that a round has to move, or it was the last. */
const SETTLED = 1e-4;

/** Splits the load of every expert with several copies so that the slowest shard is fastest, under each of the layer's loads. */
export function balance(layer: Layer, maxRounds = MAX_ROUNDS, settled = SETTLED): void {
  for (let l = 0; l < layer.loads.length; l++) balanceLoad(layer, l, maxRounds, settled);
}

/** The same under load `l` alone; answers the seconds of its slowest shard. */
export function balanceLoad(
  layer: Layer,
  l: number,
  maxRounds = MAX_ROUNDS,
  settled = SETTLED,
): number {
  const { shared } = layer;
  const seconds = layer.seconds[l];
  let slow = slowest(seconds);
  for (let round = 0; round < maxRounds && shared.length > 0; round++) {
    let moved = 0;
    for (let i = 0; i < shared.length; i++) {
      const most = settle(layer, l, shared[i]);
      if (most > moved) moved = most;
    }
    slow = slowest(seconds);
    if (moved <= settled * slow) break;
  }
  return slow;
}

/** Gives one expert its best split beside the others as they are, under the forecast. */
export function balanceExpert(layer: Layer, expert: number): void {
  settle(layer, 0, expert);
}

/** Splits the load of every expert with several copies by shares that are given, of which those of lost copies go to the others. */
export function splitByShares(
  layer: Layer,
  shareOf: (expert: number, shard: number) => number,
): void {
  const { shared, holders, loads, pairs, seconds, maxCopies } = layer;
  const { perPair } = layer.costs;
  for (const expert of shared) {
    const shares = holders[expert].map((shard) => shareOf(expert, shard));
    const sum = shares.reduce((total, share) => total + share, 0);
    for (let l = 0; l < loads.length; l++) {
      for (const [i, shard] of holders[expert].entries()) {
        const at = expert * maxCopies + i;
        const now = loads[l][expert] * (sum > 0 ? shares[i] / sum : 1 / shares.length);
        seconds[l][shard] += perPair[shard] * (now - pairs[l][at]);
        pairs[l][at] = now;
      }
    }
  }
}

/** The most of any shard. */
export function slowest(seconds: Float64Array): number {
  let most = 0;
  for (let shard = 0; shard < seconds.length; shard++) {
    if (seconds[shard] > most) most = seconds[shard];
  }
  return most;
}

/** Index of the slowest shard. */
export function indexOfMost(seconds: Float64Array): number {
  let most = 0;
  for (let shard = 1; shard < seconds.length; shard++) {
    if (seconds[shard] > seconds[most]) most = shard;
  }
  return most;
}

/** Gives one expert its best split beside the others; answers the most seconds that a shard gained or lost. */
function settle(layer: Layer, l: number, expert: number): number {
  const { perPair } = layer.costs;
  const holders = layer.holders[expert];
  const pairs = layer.pairs[l];
  const seconds = layer.seconds[l];
  const from = expert * layer.maxCopies;
  const load = layer.loads[l][expert];
  let level = Infinity;
  let highest = Infinity;
  // Newton's method on a convex, piecewise linear function: from above all, it ends where the level leaves no more of
  // the holders out, after at most one step for each.
  while (highest >= level) {
    let rate = 0;
    let filled = 0;
    highest = -Infinity;
    for (let i = 0; i < holders.length; i++) {
      const each = perPair[holders[i]];
      const without = seconds[holders[i]] - each * pairs[from + i];
      if (without >= level) continue;
      if (without > highest) highest = without;
      rate += 1 / each;
      filled += without / each;
    }
    const next = (load + filled) / rate;
    if (!(next < level)) break;
    level = next;
  }
  let moved = 0;
  for (let i = 0; i < holders.length; i++) {
    const shard = holders[i];
    const each = perPair[shard];
    const room = level - (seconds[shard] - each * pairs[from + i]);
    const now = room > 0 ? room / each : 0;
    const gain = each * (now - pairs[from + i]);
    pairs[from + i] = now;
    seconds[shard] += gain;
    const size = gain < 0 ? -gain : gain;
    if (size > moved) moved = size;
  }
  return moved;
}
