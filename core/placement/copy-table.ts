/** The copies of one layer's experts in flat arrays, as the router's dispatch reads them at every step. */

import type { LayerReplicas } from "./placement.ts";

/** Copies of one layer, and memory to choose among them in: not for two choices at once. */
export interface CopyTable {
  /** Rank of each shard index [numShards]. */
  readonly ranks: readonly number[];
  /** Where the copies of each expert begin [numExperts + 1]. */
  readonly offsets: Uint32Array;
  /** Shard index of each copy [numCopies]. */
  readonly shards: Uint16Array;
  /** Experts with several copies, ascending. */
  readonly shared: Uint16Array;
  readonly scratch: SplitScratch;
}

/** What choosing writes to. */
export interface SplitScratch {
  /** Pairs of each copy, whole at the end [numCopies]. */
  readonly pairs: Float64Array;
  /** Seconds of each shard, 0 where it gets nothing [numShards]. */
  readonly seconds: Float64Array;
  /** Pairs of each expert [numExperts]. */
  readonly counts: Uint32Array;
  /** The last token, counted from 1, that each shard got in this choice [numShards]. */
  readonly lastToken: Int32Array;
}

/** What rows at a shard cost now, by shard index; a shard that can not be reached has an infinite `fixed` [numShards]. */
export interface SplitCosts {
  /** Of a shard that gets any row: its round trip. */
  readonly fixed: Float64Array;
  /** The router's own time for one more message, which the other shards' messages wait for. */
  readonly perHop: Float64Array;
  /** Of one row on the link. */
  readonly perRow: Float64Array;
  /** Of one row through one expert. */
  readonly perPair: Float64Array;
  /** Of one expert that is touched. */
  readonly perExpert: Float64Array;
}

/** The table of a layer; `ranks` says which shard index each rank has. Throws RangeError at a rank that is not there. */
export function copyTable(replicas: LayerReplicas, ranks: readonly number[]): CopyTable {
  const indexOf = new Map(ranks.map((rank, index) => [rank, index]));
  const offsets = new Uint32Array(replicas.length + 1);
  const shards: number[] = [];
  for (const [expert, copies] of replicas.entries()) {
    for (const { rank } of copies) {
      const index = indexOf.get(rank);
      if (index === undefined) throw new RangeError(`expert ${expert} is on unknown rank ${rank}`);
      shards.push(index);
    }
    offsets[expert + 1] = shards.length;
  }
  return {
    ranks,
    offsets,
    shards: Uint16Array.from(shards),
    shared: Uint16Array.from([...replicas.keys()].filter((expert) => replicas[expert].length > 1)),
    scratch: {
      pairs: new Float64Array(shards.length),
      seconds: new Float64Array(ranks.length),
      counts: new Uint32Array(replicas.length),
      lastToken: new Int32Array(ranks.length),
    },
  };
}
