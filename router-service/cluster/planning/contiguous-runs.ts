/** The placement of epoch 1, before any statistics: every layer's experts in contiguous runs over the shards; pure. */

import { countText, offersText } from "../../../core/amounts.ts";
import { PlacementError } from "../errors.ts";

/** What the placement is made from. */
export interface FirstPlacementInput {
  /** Indices of the MoE layers. */
  readonly layers: readonly number[];
  /** Device memory that each logical expert takes in all layers together, bytes [numExperts]. */
  readonly bytesByExpert: readonly number[];
  /** Memory that each shard offers, bytes, in rank order. */
  readonly memoryBytes: readonly number[];
}

/**
 * How many experts of every layer each shard takes, in rank order: even shares, cut where a shard's memory ends and
 * given to those that have room. Throws PlacementError with the numbers where all together have too little memory.
 */
export function expertsPerShard(input: FirstPlacementInput): number[] {
  const { layers, bytesByExpert, memoryBytes } = input;
  const numExperts = bytesByExpert.length;
  // The fewest experts that every shard may be asked for so that all experts have a place.
  let few = Math.floor(numExperts / Math.max(1, memoryBytes.length));
  let many = numExperts;
  while (few < many) {
    const middle = Math.floor((few + many) / 2);
    if (sumOf(sharesOf(input, middle)) === numExperts) many = middle;
    else few = middle + 1;
  }
  const shares = sharesOf(input, few);
  const placed = sumOf(shares);
  if (placed < numExperts) {
    throw new PlacementError(
      `${countText(layers.length, "layer")} of ${countText(numExperts, "expert")} take ${offersText([sumOf(bytesByExpert)])}; ` +
        `${countText(memoryBytes.length, "shard offers", "shards offer")} ${offersText(memoryBytes)}, ` +
        `room for ${countText(placed, "expert")} of every layer`,
    );
  }
  return shares;
}

/** What each shard takes of the experts that those before it left, at most `limit` and what fits its memory. */
function sharesOf({ bytesByExpert, memoryBytes }: FirstPlacementInput, limit: number): number[] {
  let next = 0;
  return memoryBytes.map((bytes) => {
    let share = 0;
    let left = bytes;
    while (share < limit && next < bytesByExpert.length && bytesByExpert[next] <= left) {
      left -= bytesByExpert[next++];
      share++;
    }
    return share;
  });
}

function sumOf(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0);
}

/** The logical experts [from, to) of every layer that each shard holds, in rank order. Throws PlacementError. */
export function planFirstPlacement(
  input: FirstPlacementInput,
): { readonly from: number; readonly to: number }[] {
  let next = 0;
  return expertsPerShard(input).map((share) => {
    const from = next;
    next += share;
    return { from, to: next };
  });
}

/** Epoch of the placement that routers start with. */
export const FIRST_EPOCH = 1;
