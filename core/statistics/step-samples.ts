/** Loads of single decode steps of late, a few of many: what evens out over a window does not within one step. */

import type { RoutedStep, RoutingShape } from "./routed-step.ts";

/** Steps that are kept: 1 MB at 61 layers of 256 experts. */
export const MAX_STEP_SAMPLES = 16;

/** Steps with fewer decode tokens say more of those tokens than of steps. */
export const LEAST_STEP_TOKENS = 8;

/** One of so many steps is kept: while there are few, and then in place of another, which is about 1000 steps old by that. */
const EVERY_FIRST = 8;
const EVERY = 64;

/** A fading reservoir: each step that is kept takes the place of any other. */
export class StepSamples {
  readonly #shape: RoutingShape;
  readonly #random: () => number;
  /** Pairs per layer and expert [numMoeLayers, numExperts] each. */
  readonly #samples: Uint32Array[] = [];

  /** @param random draws from [0, 1) */
  constructor(shape: RoutingShape, random: () => number) {
    this.#shape = shape;
    this.#random = random;
  }

  /** Keeps the step's decode tokens, or lets it pass; its arrays fit the model (RoutingCounters.record). */
  offer(step: RoutedStep): void {
    const full = this.#samples.length === MAX_STEP_SAMPLES;
    if (this.#random() * (full ? EVERY : EVERY_FIRST) >= 1) return;
    let tokens = 0;
    for (const { phase, numTokens } of step.sequences) tokens += phase === "decode" ? numTokens : 0;
    if (tokens < LEAST_STEP_TOKENS) return;
    if (!full) this.#samples.push(this.#count(step, new Uint32Array(this.#cells)));
    else this.#count(step, this.#samples[Math.floor(this.#random() * MAX_STEP_SAMPLES)].fill(0));
  }

  /** Pairs of each step per layer and expert, MAX_STEP_SAMPLES of them; none before there are as many. */
  loads(): Float64Array[] {
    const full = this.#samples.length === MAX_STEP_SAMPLES;
    return full ? this.#samples.map((pairs) => Float64Array.from(pairs)) : [];
  }

  get #cells(): number {
    return this.#shape.layers.length * this.#shape.numExperts;
  }

  #count({ sequences, routing }: RoutedStep, pairs: Uint32Array): Uint32Array {
    const { layers, numExperts } = this.#shape;
    for (const [index, layer] of layers.entries()) {
      const ofLayer = routing.get(layer);
      if (ofLayer === undefined) continue;
      let entry = 0;
      for (const { phase, numTokens } of sequences) {
        const end = entry + numTokens * ofLayer.topK;
        for (; entry < end; entry++) {
          if (phase === "decode") pairs[index * numExperts + ofLayer.ids[entry]]++;
        }
      }
    }
    return pairs;
  }
}
