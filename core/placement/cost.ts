/**
 * What a step takes with a placement. Of each MoE layer a step waits for its slowest shard, after the router's own
 * work for the messages:
 *
 *   layer = router: seconds per hop · hops + seconds per row · rows
 *         + slowest shard: round trip + rows · bytes / bandwidth + experts touched · seconds per expert + pairs · seconds per pair
 *
 * All of it as expected from the forecast: an expert is touched where a step has a pair for it, a token's row goes to a shard
 * once, however many of its experts are there.
 */

import type { PlacedLayers, PlannedShard, PlannerInput, RouterCosts } from "./input.ts";
import { touches, type LayerCosts } from "./layer.ts";
import { LOCAL_RANK, type LayerReplicas } from "./placement.ts";

/** What predicting takes of the planner's input. */
export type CostInput = Pick<
  PlannerInput,
  "layers" | "numExperts" | "topK" | "load" | "shards" | "router"
>;

/** What is expected of one layer. */
export interface LayerTime {
  /** All of the layer: the router's part and the slowest shard's. */
  readonly seconds: number;
  /** Index of the slowest shard. */
  readonly slowest: number;
  /** Of each shard [numShards]. */
  readonly shardSeconds: Float64Array;
  /** Pairs of each shard [numShards]. */
  readonly pairs: Float64Array;
  /** Rows of each shard: tokens that have an expert there [numShards]. */
  readonly rows: Float64Array;
}

/** Pairs of the layer at `index` [numExperts]. */
export function loadOfLayer({ load, numExperts }: CostInput, index: number): Float64Array {
  return load.subarray(index * numExperts, (index + 1) * numExperts);
}

/** Expected time of each layer, in the order of `layers`; an expert without a copy on the shards costs nothing. */
export function layerTimes(input: CostInput, placed: PlacedLayers): LayerTime[] {
  return input.layers.map((layer, index) =>
    timeOfLayer(input, loadOfLayer(input, index), placed.get(layer) ?? []),
  );
}

/** Expected time of all MoE layers of one step. */
export function stepSeconds(input: CostInput, placed: PlacedLayers): number {
  return layerTimes(input, placed).reduce((sum, { seconds }) => sum + seconds, 0);
}

/** Expected time of one layer whose experts get `load` pairs. */
export function timeOfLayer(
  { topK, shards, router }: CostInput,
  load: Float64Array,
  replicas: LayerReplicas,
): LayerTime {
  const indexOf = new Map(shards.map(({ rank }, index) => [rank, index]));
  const tokens = Math.max(1, load.reduce((sum, pairs) => sum + pairs, 0) / topK);
  const pairs = new Float64Array(shards.length);
  const touched = new Float64Array(shards.length);
  const missed = new Float64Array(shards.length).fill(1);
  for (const [expert, copies] of replicas.entries()) {
    for (const { rank, share } of copies) {
      const shard = indexOf.get(rank);
      if (shard === undefined) continue;
      const mine = load[expert] * share;
      pairs[shard] += mine;
      touched[shard] += touches(mine);
      missed[shard] *= 1 - Math.min(1, mine / tokens);
    }
  }
  const rows = missed.map((part) => tokens * (1 - part));
  const shardSeconds = new Float64Array(shards.length);
  let routerSeconds = 0;
  let slowest = 0;
  for (const [shard, costs] of shards.entries()) {
    const visited = touches(pairs[shard]);
    shardSeconds[shard] =
      visited * costs.rttSeconds +
      rows[shard] * secondsOnLink(costs, router) +
      touched[shard] * costs.secondsPerExpert +
      pairs[shard] * costs.secondsPerPair;
    if (costs.rank !== LOCAL_RANK) {
      routerSeconds += visited * router.secondsPerHop + rows[shard] * router.secondsPerRow;
    }
    if (shardSeconds[shard] > shardSeconds[slowest]) slowest = shard;
  }
  const seconds = routerSeconds + (shardSeconds[slowest] ?? 0);
  return { seconds, slowest, shardSeconds, pairs, rows };
}

/** Time of one row and its partial sum on a shard's link. */
export function secondsOnLink(
  { bytesPerSecond }: PlannedShard,
  { rowBytesOut, rowBytesIn }: RouterCosts,
): number {
  return (rowBytesOut + rowBytesIn) / bytesPerSecond;
}

/** The costs as the search has them, linear in pairs: a pair brings the part of a row that it has where all shards hold as much. */
export function linearCosts({ topK, shards, router }: CostInput): LayerCosts {
  const even = 1 / Math.max(1, shards.filter(({ draining }) => !draining).length);
  const rowsPerPair = (1 - (1 - even) ** topK) / (topK * even);
  return {
    fixed: Float64Array.from(shards, ({ rttSeconds }) => rttSeconds),
    perPair: Float64Array.from(
      shards,
      (shard) => shard.secondsPerPair + rowsPerPair * secondsOnLink(shard, router),
    ),
    perExpert: Float64Array.from(shards, ({ secondsPerExpert }) => secondsPerExpert),
  };
}
