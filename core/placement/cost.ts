/** What a step takes with a placement that is given, by the objective of the planner. */

import { balance } from "./balance.ts";
import { expectedLoads } from "./expected-loads.ts";
import type { PlacedLayers, PlannerInput } from "./input.ts";
import { addCopy, emptyLayer, sharesOf, type Layer } from "./layer.ts";
import { layerCosts, scoreOf } from "./objective.ts";
import type { LayerReplicas } from "./placement.ts";

/** What predicting takes of the planner's input. */
export type CostInput = Pick<
  PlannerInput,
  "layers" | "numExperts" | "topK" | "load" | "uncertainty" | "steps" | "shards" | "router"
>;

/** Expected time of all MoE layers of one step, every load split as well as the copies allow; experts without one cost nothing. */
export function stepSeconds(input: CostInput, placed: PlacedLayers): number {
  return input.layers.reduce((sum, number, index) => {
    const layer = heldLayer(input, index, holdersIn(input, placed.get(number)));
    balance(layer);
    return sum + scoreOf(layer);
  }, 0);
}

/** Shard indices that hold each expert; copies elsewhere are left out [numExperts]. */
export function holdersIn(
  { shards, numExperts }: Pick<PlannerInput, "shards" | "numExperts">,
  replicas: LayerReplicas | undefined,
): number[][] {
  const indexOf = new Map(shards.map(({ rank }, index) => [rank, index]));
  return Array.from({ length: numExperts }, (_, expert) =>
    (replicas?.[expert] ?? []).flatMap(({ rank }) => indexOf.get(rank) ?? []),
  );
}

/** The layer at `index` with copies as given, not balanced yet. */
export function heldLayer(
  input: CostInput,
  index: number,
  holders: readonly (readonly number[])[],
): Layer {
  const used = new Set(holders.flat()).size;
  const layer = emptyLayer(expectedLoads(input, index), layerCosts(input, used));
  for (const [expert, shards] of holders.entries()) {
    for (const shard of shards) addCopy(layer, expert, shard);
  }
  return layer;
}

/** The layer's copies as a placement has them, with the shares of the forecast's split. */
export function replicasOf(layer: Layer, { shards }: Pick<PlannerInput, "shards">): LayerReplicas {
  return layer.holders.map((holders, expert) => {
    const shares = sharesOf(layer, expert);
    return holders
      .map((shard, i) => ({ rank: shards[shard].rank, share: shares[i] }))
      .sort((a, b) => a.rank - b.rank);
  });
}
