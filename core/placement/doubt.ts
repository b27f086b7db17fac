/** How sure it is that a plan saves what it seems to: shards are as fast as they were measured, more or less. */

import { balanceLoad } from "./balance.ts";
import { heldLayer, placedCopies, shardIndices } from "./cost.ts";
import type { PlacedLayers, PlannerInput } from "./input.ts";
import type { Layer } from "./layer.ts";
import { scoreOf } from "./objective.ts";
import { drawNormal, seededRandom } from "../random.ts";

/** Speeds that are drawn, and as many mirrored. */
const DRAWS = 4;

/**
 * Standard deviation of what a step saves by `target` beside `current`, where each shard takes longer or shorter than
 * measured, by chance, as far as its measurements spread; of the forecast's load alone, seconds.
 */
export function savingDeviation(
  input: PlannerInput,
  current: PlacedLayers,
  target: PlacedLayers,
): number {
  const { shards, layers, numExperts, topK, load, router, reads } = input;
  if (shards.every(({ spread = 0 }) => spread === 0)) return 0;
  const forecast = {
    layers,
    numExperts,
    topK,
    load,
    router,
    shards,
    steps: [],
    ...(reads && { reads }),
  };
  const indexOf = shardIndices(shards);
  const slower = slownesses(shards);
  const savings = new Float64Array(slower.length);
  let pairs: Layer["pairs"] | undefined;
  for (const [index, number] of layers.entries()) {
    for (const [placed, sign] of [
      [current, 1],
      [target, -1],
    ] as const) {
      const copies = placedCopies(forecast, indexOf, placed.get(number));
      const layer = withOwnCosts(heldLayer(forecast, index, copies, pairs));
      pairs = layer.pairs;
      for (const [draw, factors] of slower.entries()) {
        savings[draw] += sign * secondsWith(layer, factors);
      }
    }
  }
  const [usual, ...drawn] = savings;
  const square = drawn.reduce((sum, saving) => sum + (saving - usual) ** 2, 0);
  return Math.sqrt(square / drawn.length);
}

/** How many times as long as before each shard takes, draw after draw: first as long as was measured [1 + draws][numShards]. */
function slownesses(shards: PlannerInput["shards"]): Float64Array[] {
  const random = seededRandom(1);
  const deviations = [new Float64Array(shards.length)];
  for (let draw = 0; draw < DRAWS; draw++) {
    const chance = Float64Array.from(shards, ({ spread = 0 }) => spread * drawNormal(random));
    deviations.push(
      chance,
      chance.map((one) => -one),
    );
  }
  return deviations.map((ofShards, draw) =>
    ofShards.map((one, shard) => Math.exp(one - (draw === 0 ? 0 : deviations[draw - 1][shard]))),
  );
}

/** The layer with costs that are no other's. */
function withOwnCosts(layer: Layer): Layer {
  const { fixed, perPair, perExpert } = layer.costs;
  const own = { fixed: fixed.slice(), perPair: perPair.slice(), perExpert: perExpert.slice() };
  return { ...layer, costs: { ...layer.costs, ...own } };
}

/** Seconds of the layer when all that a shard takes is so many times as long, which it is from then on. */
function secondsWith(layer: Layer, factors: Float64Array): number {
  const { fixed, perPair, perExpert } = layer.costs;
  const [seconds] = layer.seconds;
  for (let shard = 0; shard < factors.length; shard++) {
    fixed[shard] *= factors[shard];
    perPair[shard] *= factors[shard];
    perExpert[shard] *= factors[shard];
    seconds[shard] *= factors[shard];
  }
  balanceLoad(layer, 0);
  return scoreOf(layer);
}
