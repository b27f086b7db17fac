/** Which shard takes which pair of the batch at hand. */

import type { CopyTable, SplitCosts } from "./copy-table.ts";
import { chooseReplicas } from "./split.ts";

/** Pairs up to which each is placed by itself: a hop more or less decides there. */
const FEW_PAIRS = 48;
/** More than any number of pairs. */
const ANY_COUNT = 2 ** 32;

/**
 * Shard index of every pair of a batch, in the order of the routing's ids [numTokens, topK]. Many pairs are shared out
 * as chooseReplicas says, each token's to as few shards as that allows; few are placed one by one where they are done
 * soonest, counting the message, the row and the expert that they add: a single token goes to as few shards as the costs say.
 */
export function assignPairs(
  ids: ArrayLike<number>,
  topK: number,
  table: CopyTable,
  costs: SplitCosts,
): Uint16Array {
  const assigned = new Uint16Array(ids.length);
  if (ids.length <= FEW_PAIRS) placeOneByOne(ids, topK, table, costs, assigned);
  else shareOut(ids, topK, table, costs, assigned);
  return assigned;
}

function shareOut(
  ids: ArrayLike<number>,
  topK: number,
  table: CopyTable,
  costs: SplitCosts,
  assigned: Uint16Array,
): void {
  const { offsets, shards, scratch } = table;
  const { counts, lastToken } = scratch;
  counts.fill(0);
  for (let i = 0; i < ids.length; i++) counts[ids[i]]++;
  const left = chooseReplicas(counts, table, costs);
  lastToken.fill(0);
  for (let first = 0, token = 1; first < ids.length; first += topK, token++) {
    for (let i = first; i < first + topK; i++) {
      const copy = offsets[ids[i]];
      if (offsets[ids[i] + 1] !== copy + 1) continue;
      assigned[i] = shards[copy];
      lastToken[shards[copy]] = token;
    }
    for (let i = first; i < first + topK; i++) {
      if (offsets[ids[i] + 1] === offsets[ids[i]] + 1) continue;
      const copy = bestLeft(ids[i], token, table, left);
      left[copy]--;
      assigned[i] = shards[copy];
      lastToken[shards[copy]] = token;
    }
  }
}

/** A copy with pairs left to take: where the token's row goes anyway, else the one with most left. */
function bestLeft(expert: number, token: number, table: CopyTable, left: Float64Array): number {
  const { offsets, shards, scratch } = table;
  let best = offsets[expert];
  let most = -1;
  for (let copy = offsets[expert]; copy < offsets[expert + 1]; copy++) {
    if (left[copy] <= 0) continue;
    const here = scratch.lastToken[shards[copy]] === token ? left[copy] + ANY_COUNT : left[copy];
    if (here <= most) continue;
    best = copy;
    most = here;
  }
  return best;
}

/** Experts with one copy first, as their shards are visited in any case; then those with a choice. */
function placeOneByOne(
  ids: ArrayLike<number>,
  topK: number,
  table: CopyTable,
  costs: SplitCosts,
  assigned: Uint16Array,
): void {
  const { offsets, shards, scratch } = table;
  const { pairs, seconds } = scratch;
  const placed = new Uint8Array(ids.length);
  seconds.fill(0);
  pairs.fill(0);
  let slowest = 0;
  for (const choice of [false, true]) {
    for (let i = 0; i < ids.length; i++) {
      const from = offsets[ids[i]];
      const to = offsets[ids[i] + 1];
      if (to > from + 1 !== choice) continue;
      let best = from;
      let least = Infinity;
      let soonest = Infinity;
      for (let copy = from; copy < to; copy++) {
        const shard = shards[copy];
        const opened = seconds[shard] > 0;
        const then =
          (opened ? seconds[shard] : costs.fixed[shard]) +
          costs.perPair[shard] +
          (pairs[copy] > 0 ? 0 : costs.perExpert[shard]) +
          (hasRow(shard, i, topK, assigned, placed) ? 0 : costs.perRow[shard]);
        const all = Math.max(slowest, then) + (opened ? 0 : costs.perHop[shard]);
        if (all > least || (all === least && then >= soonest)) continue;
        best = copy;
        least = all;
        soonest = then;
      }
      const shard = shards[best];
      assigned[i] = shard;
      placed[i] = 1;
      pairs[best]++;
      seconds[shard] = soonest;
      slowest = Math.max(slowest, soonest);
    }
  }
}

/** True where another pair of the same token goes to the shard already. */
function hasRow(
  shard: number,
  pair: number,
  topK: number,
  assigned: Uint16Array,
  placed: Uint8Array,
): boolean {
  const first = pair - (pair % topK);
  for (let i = first; i < first + topK; i++)
    if (placed[i] === 1 && assigned[i] === shard) return true;
  return false;
}
