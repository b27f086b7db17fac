/** From which shards another one may fetch experts that are new to it; pure. */

import { LOCAL_RANK, type Placement } from "../../../core/placement/placement.ts";
import type { ExpertPeer, PeerLayer } from "../../../proto/gen/switchyard/v1/cluster.ts";

/** Shards that are named for one expert at most: a shard fetches few at a time, and a message has a size. */
const HOLDERS_PER_EXPERT = 4;

/** Who has what at the moment. */
export interface HeldExperts {
  readonly placement: Placement;
  /** Where the shard of a rank is reached; undefined where it does not serve what the placement gives it. */
  readonly addressOf: (rank: number) => string | undefined;
}

/** The shards that hold experts which the shard of this rank is to hold and does not have, in the order of their ranks. */
export function expertPeers(
  wanted: ReadonlyMap<number, readonly number[]>,
  rank: number,
  { placement, addressOf }: HeldExperts,
): ExpertPeer[] {
  const isThere = addressOf(rank) !== undefined;
  const peers = new Map<number, Map<number, number[]>>();
  for (const [layer, expertIds] of wanted) {
    for (const expertId of expertIds) {
      const copies = placement.layers.get(layer)?.[expertId] ?? [];
      if (isThere && copies.some((copy) => copy.rank === rank)) continue;
      const holders = copies.flatMap((copy) => {
        const gives = copy.rank !== rank && copy.rank !== LOCAL_RANK;
        return gives && addressOf(copy.rank) !== undefined ? [copy.rank] : [];
      });
      for (const holder of someOf(holders, rank + expertId)) {
        const layers = peers.get(holder) ?? new Map<number, number[]>();
        peers.set(holder, layers.set(layer, [...(layers.get(layer) ?? []), expertId]));
      }
    }
  }
  return [...peers]
    .sort(([a], [b]) => a - b)
    .flatMap(([holder, layers]) => {
      const address = addressOf(holder);
      return address === undefined ? [] : [{ address, layers: messageOf(layers) }];
    });
}

/** Not the same ones for every expert and shard. */
function someOf(holders: readonly number[], turn: number): number[] {
  const { length } = holders;
  return Array.from(
    { length: Math.min(length, HOLDERS_PER_EXPERT) },
    (_, index) => holders[(turn + index) % length],
  );
}

function messageOf(layers: ReadonlyMap<number, number[]>): PeerLayer[] {
  return [...layers].map(([layer, expertIds]) => ({ layer, expertIds }));
}
