/** The loads that a layer is judged by: the forecast, and single steps as they may come. */

import type { PlannerInput } from "./input.ts";
import { drawNormal, seededRandom, type Random } from "../random.ts";

/** Loads beside the forecast that a layer is judged by at most; for large clusters fewer, down to none: each costs as much. */
const MAX_LOADS = 16;
/** Layers · experts · shards · loads of a plan at most. */
const LOAD_CELLS = 430_000;

/** What single steps count; the rest is the forecast's, half of it as it is where its uncertainty is known. */
const STEPS_PART = 0.35;

/**
 * Spread of an expert's pairs in single steps, as a part of their mean, beside the chance of independent draws: tokens of
 * one sequence choose alike. Of the recorded DeepSeek-V2-Lite routing in steps of 64 tokens.
 */
const STEP_SPREAD = 0.5;

/** What the loads are made of. */
export type LoadInput = Pick<
  PlannerInput,
  "layers" | "numExperts" | "load" | "uncertainty" | "steps" | "shards"
>;

/** Loads that a placement is judged by, the forecast first. */
export interface JudgedLoads {
  /** Pairs per step [numLoads][numExperts]. */
  readonly loads: readonly Float64Array[];
  /** What the slowest shard under each counts; the sum is 1 [numLoads]. */
  readonly weights: readonly number[];
}

/** The forecast of the layer at `index` alone. */
export function forecastAlone({ numExperts, load }: LoadInput, index: number): JudgedLoads {
  return { loads: [load.subarray(index * numExperts, (index + 1) * numExperts)], weights: [1] };
}

/** Loads of each input's layers: the same ones judge a plan and what was before it. */
const drawn = new WeakMap<LoadInput, JudgedLoads[]>();

/**
 * Loads of the layer at `index`: the forecast, what it may be off by, and single steps. Drawn once for an input, which is
 * not to change.
 */
export function expectedLoads(input: LoadInput, index: number): JudgedLoads {
  const ofLayers = drawn.get(input) ?? [];
  if (ofLayers.length === 0) drawn.set(input, ofLayers);
  return (ofLayers[index] ??= loadsOfLayer(input, index));
}

function loadsOfLayer(input: LoadInput, index: number): JudgedLoads {
  const [forecast] = forecastAlone(input, index).loads;
  const { layers, numExperts, uncertainty, steps, shards } = input;
  const random = seededRandom(index + 1);
  const most = Math.min(
    MAX_LOADS,
    Math.floor(LOAD_CELLS / (layers.length * numExperts * shards.length)),
  );
  const ofLayer = (all: Float64Array) => all.subarray(index * numExperts, (index + 1) * numExperts);
  const errors = uncertainty && ofLayer(uncertainty);
  const mistaken = Array.from({ length: errors === undefined ? 0 : Math.floor(most / 4) }, () =>
    drawLoad(forecast, (_, expert) => errors![expert], random),
  );
  const numSteps = Math.min(most - mistaken.length, steps?.length ?? Infinity);
  const single = Array.from({ length: numSteps }, (_, i) =>
    steps === undefined
      ? drawLoad(forecast, (mean) => Math.sqrt(mean + (STEP_SPREAD * mean) ** 2), random)
      : // Evenly over those given, of which the first and last may be alike.
        ofLayer(steps[Math.floor(((i + 0.5) * steps.length) / numSteps)]),
  );
  return {
    loads: [forecast, ...mistaken, ...single],
    weights: weightsOf(mistaken.length, single.length),
  };
}

function weightsOf(numMistaken: number, numSteps: number): number[] {
  const ofSteps = numSteps > 0 ? STEPS_PART : 0;
  const ofMistaken = numMistaken > 0 ? (1 - ofSteps) / 2 : 0;
  return [
    1 - ofSteps - ofMistaken,
    ...Array.from({ length: numMistaken }, () => ofMistaken / numMistaken),
    ...Array.from({ length: numSteps }, () => ofSteps / numSteps),
  ];
}

/** A load about the forecast, with as many pairs. */
function drawLoad(
  forecast: Float64Array,
  deviation: (mean: number, expert: number) => number,
  random: Random,
): Float64Array {
  const load = new Float64Array(forecast.length);
  let pairs = 0;
  let sum = 0;
  for (let expert = 0; expert < load.length; expert++) {
    const mean = forecast[expert];
    load[expert] = Math.max(0, mean + deviation(mean, expert) * drawNormal(random));
    pairs += mean;
    sum += load[expert];
  }
  const scale = pairs / (sum || 1);
  for (let expert = 0; expert < load.length; expert++) load[expert] *= scale;
  return load;
}
