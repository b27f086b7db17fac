/**
 * What a layer's placement is judged by, in seconds of one step:
 *
 *   slowest shard: a mean over the forecast, what it may be off by, and single steps (expected-loads.ts)
 *   + router: messages · seconds per hop + rows sent · seconds per row (fewer where experts that go together sit together)
 *   + loading of what moves, spread over the steps that it is to stand (move-costs.ts)
 *
 * with a shard's seconds
 *
 *   round trip + rows · bytes / bandwidth + experts touched · seconds per expert + pairs · seconds per pair
 *
 * where round trip, bandwidth and seconds are the means of what all routers measured, weighted by their shares of the tokens
 * (router-service/cluster/planning/router-sights.ts), and every load is split as well as the copies allow (balance.ts), as the routers do at every step.
 */

import { slowest } from "./balance.ts";
import { meetings, rowsPerMeeting } from "./gathering.ts";
import { LOCAL_RANK } from "./placement.ts";
import type { PlannedShard, PlannerInput, RouterCosts } from "./input.ts";
import { touches, type Layer, type LayerCosts } from "./layer.ts";

/** What the costs are made of. */
export type CostInput = Pick<PlannerInput, "topK" | "shards" | "router">;

/** Costs of each input's layers, by the number of shards that share one. */
const known = new WeakMap<CostInput, Map<number, LayerCosts>>();

/**
 * Costs of a layer that `numUsed` shards share, linear in pairs. A token's row goes once to each shard, however many of
 * its experts are there: a pair brings the part of a row that it has where all shards get as much. Made once for an
 * input, which is not to change.
 */
export function layerCosts(input: CostInput, numUsed: number): LayerCosts {
  const ofInput = known.get(input) ?? new Map<number, LayerCosts>();
  if (ofInput.size === 0) known.set(input, ofInput);
  const costs = ofInput.get(numUsed) ?? costsAmong(input, numUsed);
  ofInput.set(numUsed, costs);
  return costs;
}

function costsAmong({ topK, shards, router }: CostInput, numUsed: number): LayerCosts {
  const part = 1 / Math.max(1, numUsed);
  const rowsPerPair = (1 - (1 - part) ** topK) / (topK * part);
  const [fixed, perPair, perExpert, perHop, perPairSent] = Array.from(
    { length: 5 },
    () => new Float64Array(shards.length),
  );
  for (let i = 0; i < shards.length; i++) {
    const shard = shards[i];
    fixed[i] = shard.rttSeconds;
    perPair[i] = shard.secondsPerPair + rowsPerPair * secondsOnLink(shard, router);
    perExpert[i] = shard.secondsPerExpert;
    if (shard.rank === LOCAL_RANK) continue;
    perHop[i] = router.secondsPerHop;
    perPairSent[i] = rowsPerPair * router.secondsPerRow;
  }
  return { fixed, perPair, perExpert, perHop, perPairSent };
}

/**
 * What one meeting of a token's experts on a shard saves, where `numUsed` share the layer [numShards]: a row of the
 * router's, and of the link's an equal part, as every shard's must shrink for the slowest to.
 */
export function secondsPerMeeting(
  { topK, shards, router }: CostInput,
  numUsed: number,
): Float64Array {
  const rows = rowsPerMeeting(topK, 1 / Math.max(1, numUsed));
  return Float64Array.from(shards, (shard) =>
    shard.rank === LOCAL_RANK
      ? 0
      : rows * (router.secondsPerRow + secondsOnLink(shard, router) / Math.max(1, numUsed)),
  );
}

/** Time of one row and its partial sum on a shard's link. */
function secondsOnLink({ bytesPerSecond }: PlannedShard, router: RouterCosts): number {
  return (router.rowBytesOut + router.rowBytesIn) / bytesPerSecond;
}

/**
 * The router's seconds for messages and rows under the forecast, less what experts that go together save: seconds that no
 * shard waits for alone.
 */
export function routerSeconds(layer: Layer): number {
  const { perHop, perPairSent } = layer.costs;
  let seconds = 0;
  for (let shard = 0; shard < layer.numShards; shard++) {
    if (layer.together !== undefined) {
      seconds -= layer.together.perRow[shard] * knownMeetings(layer, shard);
    }
    if (perHop[shard] === 0 && perPairSent[shard] === 0) continue;
    const pairs = pairsOn(layer, shard);
    seconds += perHop[shard] * touches(pairs) + perPairSent[shard] * pairs;
  }
  return seconds;
}

/** Meetings on the shard, counted again only where its copies, or how many share with them, have changed. */
function knownMeetings(layer: Layer, shard: number): number {
  if (Number.isNaN(layer.met[shard])) layer.met[shard] = meetings(layer, shard);
  return layer.met[shard];
}

/** Pairs of a shard under the forecast; what touching its experts takes counts as pairs. */
export function pairsOn({ held, seconds, costs }: Layer, shard: number): number {
  if (held[shard].length === 0) return 0;
  return Math.max(0, seconds[0][shard] - costs.fixed[shard]) / costs.perPair[shard];
}

/** The layer's score as it is split now, without moves. */
export function scoreOf(layer: Layer): number {
  let sum = routerSeconds(layer);
  for (let l = 0; l < layer.seconds.length; l++) {
    sum += layer.weights[l] * slowest(layer.seconds[l]);
  }
  return sum;
}
