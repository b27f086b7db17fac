/** The loads that a layer is judged by: the forecast, and single steps as they may come. */

import type { PlannerInput } from "./input.ts";
import { seededRandom, type Random } from "./random.ts";

/** Single steps that a layer is judged by at most; for large clusters fewer, down to none: each costs as much as the forecast. */
const MAX_STEPS = 16;
const STEP_CELLS = 16_384;

/**
 * Spread of an expert's pairs in single steps, as a part of their mean, beside the chance of independent draws: tokens of
 * one sequence choose alike. Of the recorded DeepSeek-V2-Lite routing in steps of 64 tokens.
 */
const STEP_SPREAD = 0.5;

/** What the loads are made of. */
export type LoadInput = Pick<
  PlannerInput,
  "numExperts" | "load" | "uncertainty" | "steps" | "shards"
>;

/** Loads of the layer at `index`, the forecast first [1 + numSteps][numExperts]. */
export function expectedLoads(input: LoadInput, index: number): Float64Array[] {
  const { numExperts, load, uncertainty, steps, shards } = input;
  const from = index * numExperts;
  const forecast = load.subarray(from, from + numExperts);
  const count = Math.min(MAX_STEPS, Math.floor(STEP_CELLS / (numExperts * shards.length)));
  if (steps !== undefined) {
    // Evenly over those given, of which the first and last may be alike.
    const chosen = Math.min(count, steps.length);
    return [
      forecast,
      ...Array.from({ length: chosen }, (_, i) =>
        steps[Math.floor(((i + 0.5) * steps.length) / chosen)].subarray(from, from + numExperts),
      ),
    ];
  }
  const random = seededRandom(index + 1);
  const errors = uncertainty?.subarray(from, from + numExperts);
  return [forecast, ...Array.from({ length: count }, () => drawStep(forecast, errors, random))];
}

/** One step about the forecast, with as many pairs. */
function drawStep(
  forecast: Float64Array,
  errors: Float64Array | undefined,
  random: Random,
): Float64Array {
  const drawn = forecast.map((mean, expert) => {
    const error = errors?.[expert] ?? 0;
    const deviation = Math.sqrt(mean + (STEP_SPREAD * mean) ** 2 + error ** 2);
    return Math.max(0, mean + deviation * normal(random));
  });
  const scale = sumOf(forecast) / (sumOf(drawn) || 1);
  return drawn.map((pairs) => pairs * scale);
}

/** A draw from the standard normal distribution. */
function normal(random: Random): number {
  return Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
}

function sumOf(values: Float64Array): number {
  return values.reduce((sum, value) => sum + value, 0);
}
