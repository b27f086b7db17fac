/** A first placement of a layer: each expert once, then free room filled with copies of what the slowest shard waits for. */

import { balanceExpert, balanceLoad, indexOfMost } from "./balance.ts";
import { addCopy, holds, removeCopy, touches, type Layer } from "./layer.ts";
import type { LayerCopy, Room } from "./propose.ts";

/** Part of the slowest seconds that is no more than what splits leave open. */
const SLOWER = 1e-3;

/**
 * Puts every expert that has no copy, the most loaded first, where it is done soonest, and takes the room. Answers the
 * experts that no shard has room for.
 */
export function packMissing(layer: Layer, { shards, sizes, free }: Room): number[] {
  const { holders, held, costs, loads, seconds, reads } = layer;
  const { fixed, perPair, perExpert } = costs;
  const [load] = loads;
  const missing = [...holders.keys()].filter((expert) => holders[expert].length === 0);
  missing.sort((a, b) => load[b] - load[a] || a - b);
  return missing.filter((expert) => {
    const pairs = load[expert];
    const touched = touches(pairs) * (reads?.[expert] ?? 1);
    let best = -1;
    let soonest = Infinity;
    for (let i = 0; i < shards.length; i++) {
      const shard = shards[i];
      if (free[shard] < sizes[expert]) continue;
      const before = held[shard].length === 0 ? fixed[shard] : seconds[0][shard];
      const then = before + perPair[shard] * pairs + perExpert[shard] * touched;
      if (then >= soonest) continue;
      soonest = then;
      best = shard;
    }
    if (best < 0) return true;
    addCopy(layer, expert, best);
    free[best] -= sizes[expert];
    return false;
  });
}

/** Gives every expert its second copy, then its third, up to as many as it is to have at least, as far as the room goes. */
export function packMinCopies(layer: Layer, room: Room): void {
  const { holders, loads } = layer;
  const { sizes, free, shards, minCopies } = room;
  if (minCopies < 2) return;
  const [seconds] = layer.seconds;
  const byLoad = [...holders.keys()].sort((a, b) => loads[0][b] - loads[0][a] || a - b);
  for (let copies = 2; copies <= minCopies; copies++) {
    balanceLoad(layer, 0, 4, 1e-2);
    for (const expert of byLoad) {
      if (holders[expert].length >= copies) continue;
      const open = shards.filter(
        (shard) => free[shard] >= sizes[expert] && !holds(layer, expert, shard),
      );
      if (open.length === 0) continue;
      const fastest = open.reduce((best, shard) => (seconds[shard] < seconds[best] ? shard : best));
      addCopy(layer, expert, fastest);
      free[fastest] -= sizes[expert];
      balanceExpert(layer, expert);
    }
  }
}

/**
 * Fills the room that is left: each copy is of the expert that keeps the slowest shard busiest, on the fastest with room.
 * Every copy is read on its own: the first that makes the slowest shard slower goes again, and is the last.
 */
export function fillWithCopies(layer: Layer, room: Room): void {
  const { sizes, free } = room;
  const smallest = sizes.reduce((least, size) => Math.min(least, size), Infinity);
  const open = room.shards.filter((shard) => free[shard] >= smallest);
  const isRead = layer.costs.perExpert.some((seconds) => seconds > 0);
  let last: (LayerCopy & { readonly slowBefore: number }) | undefined;
  while (open.length > 0) {
    const slow = balanceLoad(layer, 0, 4, 1e-2);
    if (isRead && last !== undefined && slow > last.slowBefore * (1 + SLOWER)) {
      removeCopy(layer, last.expert, last.shard);
      free[last.shard] += sizes[last.expert];
      balanceLoad(layer, 0, 4, 1e-2);
      return;
    }
    const [seconds] = layer.seconds;
    open.sort((a, b) => seconds[a] - seconds[b] || a - b);
    const copy = worstCopy(layer, room, open);
    if (copy === undefined) return;
    addCopy(layer, copy.expert, copy.shard);
    free[copy.shard] -= sizes[copy.expert];
    last = { ...copy, slowBefore: slow };
    if (free[copy.shard] < smallest) open.splice(open.indexOf(copy.shard), 1);
  }
}

/** The expert that keeps the slowest shard busiest and could have a copy on one of the `open` shards, the first that can. */
function worstCopy(layer: Layer, room: Room, open: readonly number[]): LayerCopy | undefined {
  const [seconds] = layer.seconds;
  const slowest = indexOfMost(seconds);
  return copyFrom(layer, room, open, slowest) ?? firstCopy();

  function firstCopy(): LayerCopy | undefined {
    const slowFirst = room.shards.toSorted((a, b) => seconds[b] - seconds[a] || a - b);
    for (const slow of slowFirst) {
      const copy = copyFrom(layer, room, open, slow);
      if (copy !== undefined) return copy;
    }
    return undefined;
  }
}

function copyFrom(
  layer: Layer,
  { sizes, free }: Room,
  open: readonly number[],
  slow: number,
): LayerCopy | undefined {
  let best: LayerCopy | undefined;
  let most = -1;
  for (const expert of layer.held[slow]) {
    const pairs = pairsThere(layer, expert, slow);
    if (pairs <= most || layer.holders[expert].length === layer.maxCopies) continue;
    const shard = open.find((one) => free[one] >= sizes[expert] && !holds(layer, expert, one));
    if (shard === undefined) continue;
    best = { expert, shard };
    most = pairs;
  }
  return best;
}

/** Pairs of an expert that a shard takes under the forecast. */
function pairsThere({ holders, loads, pairs, maxCopies }: Layer, expert: number, shard: number) {
  if (holders[expert].length === 1) return loads[0][expert];
  return pairs[0][expert * maxCopies + holders[expert].indexOf(shard)];
}
