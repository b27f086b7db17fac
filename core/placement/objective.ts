/**
 * What a layer's placement is judged by, in seconds of one step:
 *
 *   slowest shard under the forecast · (1 − steps' part) + mean over single steps of the slowest shard · steps' part
 *   + router: messages · seconds per hop + rows sent · seconds per row
 *   + loading of what moves, spread over the steps that it is to stand (move-costs.ts)
 *
 * with a shard's seconds
 *
 *   round trip + rows · bytes / bandwidth + experts touched · seconds per expert + pairs · seconds per pair
 *
 * where every load is split as well as the copies allow (balance.ts), as the routers do at every step.
 */

import { LOCAL_RANK } from "./placement.ts";
import type { PlannedShard, PlannerInput, RouterCosts } from "./input.ts";
import { touches, type Layer, type LayerCosts } from "./layer.ts";

/** Part that single steps have in the score beside the forecast. */
const STEPS_PART = 0.4;

/** What the costs are made of. */
export type CostInput = Pick<PlannerInput, "topK" | "shards" | "router">;

/**
 * Costs of a layer that `numUsed` shards share, linear in pairs. A token's row goes once to each shard, however many of
 * its experts are there: a pair brings the part of a row that it has where all shards get as much.
 */
export function layerCosts({ topK, shards, router }: CostInput, numUsed: number): LayerCosts {
  const part = 1 / Math.max(1, numUsed);
  const rowsPerPair = (1 - (1 - part) ** topK) / (topK * part);
  const perShard = (of: (shard: PlannedShard) => number) => Float64Array.from(shards, of);
  const sent = (shard: PlannedShard) => (shard.rank === LOCAL_RANK ? 0 : 1);
  return {
    fixed: perShard(({ rttSeconds }) => rttSeconds),
    perPair: perShard((one) => one.secondsPerPair + rowsPerPair * secondsOnLink(one, router)),
    perExpert: perShard(({ secondsPerExpert }) => secondsPerExpert),
    perHop: perShard((one) => sent(one) * router.secondsPerHop),
    perPairSent: perShard((one) => sent(one) * rowsPerPair * router.secondsPerRow),
  };
}

/** Time of one row and its partial sum on a shard's link. */
function secondsOnLink({ bytesPerSecond }: PlannedShard, router: RouterCosts): number {
  return (router.rowBytesOut + router.rowBytesIn) / bytesPerSecond;
}

/** What each load's slowest shard counts, the forecast first; the sum is 1 [numLoads]. */
export function loadWeights(numLoads: number): number[] {
  if (numLoads === 1) return [1];
  return Array.from({ length: numLoads }, (_, l) =>
    l === 0 ? 1 - STEPS_PART : STEPS_PART / (numLoads - 1),
  );
}

/** The router's seconds for messages and rows, under the forecast. */
export function routerSeconds(layer: Layer): number {
  const { perHop, perPairSent } = layer.costs;
  let seconds = 0;
  for (let shard = 0; shard < layer.numShards; shard++) {
    if (perHop[shard] === 0 && perPairSent[shard] === 0) continue;
    const pairs = pairsOn(layer, shard);
    seconds += perHop[shard] * touches(pairs) + perPairSent[shard] * pairs;
  }
  return seconds;
}

/** Pairs of a shard under the forecast; what touching its experts takes counts as pairs. */
export function pairsOn({ held, seconds, costs }: Layer, shard: number): number {
  if (held[shard].length === 0) return 0;
  return Math.max(0, seconds[0][shard] - costs.fixed[shard]) / costs.perPair[shard];
}

/** The layer's score as it is split now, without moves. */
export function scoreOf(layer: Layer): number {
  const weights = loadWeights(layer.loads.length);
  return layer.seconds.reduce(
    (sum, seconds, l) => sum + weights[l] * Math.max(...seconds),
    routerSeconds(layer),
  );
}
