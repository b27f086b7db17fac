/** A first placement of a layer: each expert once, then free room filled with copies of what the slowest shard waits for. */

import { balance } from "./balance.ts";
import { addCopy, touches, type Layer } from "./layer.ts";

/** Puts every expert that has no copy, the most loaded first, where it is done soonest; takes from `slots`. Answers those without room. */
export function packMissing(layer: Layer, slots: number[]): number[] {
  const { load, holders, costs, seconds } = layer;
  const { fixed, perPair, perExpert } = costs;
  const missing = [...holders.keys()].filter((expert) => holders[expert].length === 0);
  missing.sort((a, b) => load[b] - load[a] || a - b);
  return missing.filter((expert) => {
    let best = -1;
    let soonest = Infinity;
    for (let shard = 0; shard < slots.length; shard++) {
      if (slots[shard] <= 0) continue;
      const before = seconds[shard] === 0 ? fixed[shard] : seconds[shard];
      const then =
        before + perPair[shard] * load[expert] + perExpert[shard] * touches(load[expert]);
      if (then >= soonest) continue;
      soonest = then;
      best = shard;
    }
    if (best < 0) return true;
    addCopy(layer, expert, best);
    seconds[best] = soonest;
    slots[best]--;
    return false;
  });
}

/** Fills the slots that are left: each copy is of the expert that keeps the slowest shard busiest, on the fastest with room. */
export function fillWithCopies(layer: Layer, slots: number[]): void {
  for (;;) {
    balance(layer, 8);
    if (!addOneCopy(layer, slots)) return;
  }
}

function addOneCopy(layer: Layer, slots: number[]): boolean {
  const { holders, pairs, seconds } = layer;
  const slowFirst = [...seconds.keys()].sort((a, b) => seconds[b] - seconds[a] || a - b);
  for (const slow of slowFirst) {
    const there = [...holders.keys()]
      .filter((expert) => holders[expert].includes(slow))
      .sort((a, b) => pairsOn(b, slow) - pairsOn(a, slow) || a - b);
    for (const expert of there) {
      const to = slowFirst.findLast(
        (shard) => slots[shard] > 0 && !holders[expert].includes(shard),
      );
      if (to === undefined) continue;
      addCopy(layer, expert, to);
      slots[to]--;
      return true;
    }
  }
  return false;

  function pairsOn(expert: number, shard: number): number {
    return pairs[expert][holders[expert].indexOf(shard)];
  }
}
