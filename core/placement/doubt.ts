/** How sure it is that a plan saves what it seems to: shards are as fast as they were measured, more or less. */

import { drawNormal, seededRandom } from "../random.ts";
import { stepSeconds } from "./cost.ts";
import type { PlacedLayers, PlannedShard, PlannerInput } from "./input.ts";

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
  if (input.shards.every(({ spread = 0 }) => spread === 0)) return 0;
  const saving = (shards: readonly PlannedShard[]) => {
    const { layers, numExperts, topK, load, router, reads } = input;
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
    return stepSeconds(forecast, current) - stepSeconds(forecast, target);
  };
  const usual = saving(input.shards);
  const random = seededRandom(1);
  let square = 0;
  for (let draw = 0; draw < DRAWS; draw++) {
    const chance = input.shards.map(() => drawNormal(random));
    for (const sign of [1, -1]) {
      const shards = input.shards.map((shard, i) => slowed(shard, sign * chance[i]));
      square += (saving(shards) - usual) ** 2;
    }
  }
  return Math.sqrt(square / (2 * DRAWS));
}

/** The shard as it is where it takes `deviations` of its spread longer than was measured. */
function slowed(shard: PlannedShard, deviations: number): PlannedShard {
  const factor = Math.exp(deviations * (shard.spread ?? 0));
  return {
    ...shard,
    secondsPerPair: shard.secondsPerPair * factor,
    secondsPerExpert: shard.secondsPerExpert * factor,
    rttSeconds: shard.rttSeconds * factor,
    bytesPerSecond: shard.bytesPerSecond / factor,
  };
}
