/** Who holds which expert in a whole cluster. Imports nothing. */

/**
 * Rank of the routers' own devices: a copy there is resident on every router, each router's rows stay with it, and
 * nothing goes over the wire.
 */
export const LOCAL_RANK = 65_535;

/** Rank of nobody, where a row has no shard that can take it. */
export const NO_RANK = 65_534;

/** Largest rank of a shard. */
export const MAX_SHARD_RANK = NO_RANK - 1;

/** What people and programs outside are told of a rank. */
export function rankName(rank: number): number | "local" {
  return rank === LOCAL_RANK ? "local" : rank;
}

/** One resident copy of a logical expert. */
export interface Replica {
  /** The shard that has it, or LOCAL_RANK. */
  readonly rank: number;
  /** Split weight: share of the expert's tokens that it is planned to take, 0 to 1; all copies of an expert sum to 1. */
  readonly share: number;
}

/** Copies of each logical expert of a layer, ascending by rank, no rank twice [numExperts][at least 1]. */
export type LayerReplicas = readonly (readonly Replica[])[];

/** Who holds what from an epoch on. */
export interface Placement {
  /** Only grows. */
  readonly epoch: number;
  /** By MoE layer. */
  readonly layers: ReadonlyMap<number, LayerReplicas>;
}

/** Every rank that holds something, ascending. */
export function ranksOf({ layers }: Placement): number[] {
  const ranks = new Set<number>();
  for (const replicas of layers.values()) {
    for (const copies of replicas) for (const { rank } of copies) ranks.add(rank);
  }
  return [...ranks].sort((a, b) => a - b);
}
