/**
 * The best split of a placement. A shard's seconds grow linearly with its pairs, so the split that minimises the
 * sum over shards of seconds² / (2 · seconds per pair) has every expert on its fastest holders only: no shard's seconds
 * can shrink without a slower one's growing. Giving one expert after the other its best split, the others as they
 * are, leads there, as the sum is convex and smooth.
 */

import { touches, type Layer } from "./layer.ts";

/** Rounds over all experts with several copies, at most. */
const MAX_ROUNDS = 60;
/** Part of the slowest shard's seconds that a round has to move, or it was the last. */
const SETTLED = 1e-4;

/** Splits every expert's load over its copies so that the slowest shard is fastest, and sums up the shards' seconds. */
export function balance(layer: Layer, maxRounds = MAX_ROUNDS): void {
  startEqual(layer);
  const shared: number[] = [];
  for (const [expert, holders] of layer.holders.entries()) {
    if (holders.length > 1) shared.push(expert);
  }
  for (let round = 0; round < maxRounds; round++) {
    let moved = 0;
    for (const expert of shared) moved = Math.max(moved, settle(layer, expert));
    if (moved <= SETTLED * slowest(layer)) break;
  }
}

/** Seconds of the slowest shard. */
export function slowest({ seconds }: Layer): number {
  let most = 0;
  for (let shard = 0; shard < seconds.length; shard++) most = Math.max(most, seconds[shard]);
  return most;
}

/** Every copy takes an equal share. */
function startEqual({ holders, pairs, load, costs, seconds }: Layer): void {
  const { fixed, perPair, perExpert } = costs;
  seconds.fill(0);
  for (let expert = 0; expert < holders.length; expert++) {
    const ofExpert = holders[expert];
    const each = load[expert] / ofExpert.length;
    for (let i = 0; i < ofExpert.length; i++) {
      const shard = ofExpert[i];
      pairs[expert][i] = each;
      if (seconds[shard] === 0) seconds[shard] = fixed[shard];
      seconds[shard] += perPair[shard] * each + perExpert[shard] * touches(each);
    }
  }
}

/** Gives one expert its best split beside the others; answers the most seconds that a shard gained or lost. */
function settle({ holders, pairs, load, costs, seconds }: Layer, expert: number): number {
  const { perPair } = costs;
  const ofExpert = holders[expert];
  const mine = pairs[expert];
  const level = levelOf(ofExpert, mine, load[expert], perPair, seconds);
  let moved = 0;
  for (let i = 0; i < ofExpert.length; i++) {
    const shard = ofExpert[i];
    const without = seconds[shard] - perPair[shard] * mine[i];
    const now = Math.max(0, (level - without) / perPair[shard]);
    const gain = perPair[shard] * (now - mine[i]);
    mine[i] = now;
    seconds[shard] += gain;
    moved = Math.max(moved, Math.abs(gain));
  }
  return moved;
}

/** Seconds up to which the expert's pairs fill its holders, those that are above it getting none. */
function levelOf(
  holders: readonly number[],
  mine: readonly number[],
  load: number,
  perPair: Float64Array,
  seconds: Float64Array,
): number {
  // Newton's method on a convex, piecewise linear function: from above all, it ends after at most one step per holder.
  let level = Infinity;
  for (;;) {
    let rate = 0;
    let filled = 0;
    for (let i = 0; i < holders.length; i++) {
      const shard = holders[i];
      const without = seconds[shard] - perPair[shard] * mine[i];
      if (without >= level) continue;
      rate += 1 / perPair[shard];
      filled += without / perPair[shard];
    }
    const next = (load + filled) / rate;
    if (!(next < level)) return level;
    level = next;
  }
}
