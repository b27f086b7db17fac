/** The tiny model's experts: how many, how large, and placements of them. */

import type { LayerReplicas } from "../../core/placement/placement.ts";
import type { ClusterPlacement } from "../../router-service/cluster/planning/first-placement.ts";

/** MoE layers of the tiny model. */
export const NUM_LAYERS = 3;

/** Experts of each of them. */
export const NUM_EXPERTS = 12;

/** Bytes of one expert in f32: 3 matrices 64 × 40. */
export const EXPERT_BYTES = 3 * 64 * 40 * 4;

/** Every layer with these copies of each expert, with even shares, in f32. */
export function placed(
  epoch: number,
  ranksOf: (expert: number) => readonly number[],
): ClusterPlacement {
  const replicas: LayerReplicas = Array.from({ length: NUM_EXPERTS }, (_, expert) => {
    const ranks = ranksOf(expert);
    return ranks.map((rank) => ({ rank, share: 1 / ranks.length }));
  });
  const layers = new Map(
    Array.from({ length: NUM_LAYERS }, (_, layer) => [layer, replicas] as const),
  );
  return { placement: { epoch, layers }, weights: "f32", experts: "f32" };
}

/** Bytes of all experts of the tiny model in f32. */
export const TINY_EXPERTS_BYTES = NUM_LAYERS * NUM_EXPERTS * EXPERT_BYTES;
