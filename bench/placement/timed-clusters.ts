/** Clusters that planning is timed with. */

import type { PlannerInput } from "../../core/placement/planner.ts";
import { drawBelow, drawNormal, seededRandom } from "../../core/random.ts";

/** A cluster to plan for; memory is in copies of one expert. */
export interface ClusterSize {
  readonly numLayers: number;
  readonly numExperts: number;
  readonly numShards: number;
  readonly topK: number;
  readonly redundancy: number;
}

/** 48 layers × 128 experts × 16 shards: to be planned in less than 100 ms. */
export const USUAL: ClusterSize = {
  numLayers: 48,
  numExperts: 128,
  numShards: 16,
  topK: 8,
  redundancy: 0.125,
};

const EXPERT_BYTES = 1e7;
const TOKENS = 4096;

/** Skewed loads of a step of 4096 tokens on shards that are alike. */
export function inputOf({
  numLayers,
  numExperts,
  numShards,
  topK,
  redundancy,
}: ClusterSize): PlannerInput {
  const cells = numLayers * numExperts;
  const random = seededRandom(7);
  const load = Float64Array.from({ length: cells }, () => Math.exp(drawNormal(random)));
  for (let from = 0; from < cells; from += numExperts) {
    const ofLayer = load.subarray(from, from + numExperts);
    const sum = ofLayer.reduce((total, one) => total + one, 0);
    for (let expert = 0; expert < numExperts; expert++) ofLayer[expert] *= (TOKENS * topK) / sum;
  }
  return {
    layers: Array.from({ length: numLayers }, (_, index) => index),
    numExperts,
    topK,
    load,
    bytes: new Float64Array(cells).fill(EXPERT_BYTES),
    shards: Array.from({ length: numShards }, (_, rank) => ({
      rank,
      secondsPerPair: 1e-6,
      secondsPerExpert: 1e-6,
      rttSeconds: 1e-4,
      bytesPerSecond: 1e10,
      memoryBytes: Math.ceil((cells * (1 + redundancy)) / numShards) * EXPERT_BYTES,
      loadSecondsPerByte: 1e-9,
      draining: false,
      // As measured shards have: how sure a re-plan is of what it saves is a part of its time.
      spread: 0.1,
    })),
    router: { secondsPerHop: 1e-6, secondsPerRow: 0, rowBytesOut: 14_336, rowBytesIn: 28_672 },
    moves: { bytes: Infinity, steps: 1e4 },
  };
}

/** Every expert's load times a random number about one. */
export function driftedLoad({ load }: PlannerInput): Float64Array {
  const random = seededRandom(8);
  return load.map((pairs) => pairs * Math.exp(0.2 * drawNormal(random)));
}

/** Steps of 64 tokens that are shown as what was seen last. */
const STEPS = 16;
const STEP_TOKENS = 64;
const PARTNERS = 16;

/** The same with all that a router knows: steps that were seen, the load's deviation, 16 partners of each expert. */
export function withAllKnown(input: PlannerInput): PlannerInput {
  const { load, numExperts } = input;
  const random = seededRandom(10);
  const scale = STEP_TOKENS / TOKENS;
  const steps = Array.from({ length: STEPS }, () =>
    load.map((pairs) => {
      const mean = pairs * scale;
      const deviation = Math.sqrt(mean + (0.5 * mean) ** 2);
      return Math.max(0, mean + deviation * drawNormal(random)) / scale;
    }),
  );
  const partners = Uint16Array.from({ length: load.length * PARTNERS }, () =>
    drawBelow(random, numExperts),
  );
  const tokens = Float64Array.from(partners, (partner, at) => {
    const cell = Math.floor(at / PARTNERS);
    const first = cell - (cell % numExperts);
    return (load[cell] * load[first + partner] * (1 + random())) / TOKENS;
  });
  const together = { topN: PARTNERS, partners, tokens };
  const router = { ...input.router, secondsPerRow: 1e-7 };
  return { ...input, steps, uncertainty: load.map((pairs) => pairs / 10), together, router };
}

/** The same with its properties in the order of a router's `plannerInput`: V8 compiles for the very shape of an object. */
export function asRoutersSend(input: PlannerInput): PlannerInput {
  const { layers, numExperts, topK, load, uncertainty, steps, together, bytes } = input;
  const { shards, router, current, moves } = input;
  return {
    layers,
    numExperts,
    topK,
    load,
    ...(uncertainty && { uncertainty }),
    ...(steps && { steps }),
    ...(together && { together }),
    bytes,
    shards,
    router,
    ...(current && { current }),
    moves,
    minCopies: 1,
    policy: "auto",
  };
}
