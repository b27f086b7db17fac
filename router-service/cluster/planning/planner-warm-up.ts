/** Plans of small clusters, so that a thread that is new has compiled its code when it is asked for the first one; pure. */

import {
  planPlacement,
  type PlannedShard,
  type PlannerInput,
} from "../../../core/placement/planner.ts";
import { drawBelow, drawNormal, seededRandom, type Random } from "../../../core/random.ts";
import { assess } from "./assessment.ts";

/** Experts over all layers from which it pays: a smaller model's first plan is short, and its router small. */
export const LEAST_WARMED = 1000;

const ROUNDS = 6;
const NUM_LAYERS = 6;
const NUM_EXPERTS = 64;
const NUM_SHARDS = 8;
const TOP_K = 4;
const STEPS = 16;
const PARTNERS = 8;

/**
 * Plans from nothing, for a load that has drifted and without one of the shards, round after round; a round takes some tens
 * of milliseconds. Whoever asks for them may do other things in between.
 */
export function* warmUpRounds(): Generator<void> {
  for (let round = 0; round < ROUNDS; round++) {
    const random = seededRandom(round);
    const load = Float64Array.from({ length: NUM_LAYERS * NUM_EXPERTS }, () => drawn(64, random));
    const shards = Array.from({ length: NUM_SHARDS }, (_, rank) => someShard(rank, random));
    const first = asSent({ load, shards }, random);
    const { target } = planPlacement(first);
    const current = { epoch: 1, layers: target };
    const drifted = load.map((one) => drawn(one, random));
    planPlacement(asSent({ load: drifted, shards, current }, random));
    planPlacement(asSent({ load, shards: shards.slice(1), current }, random));
    assess(first, target);
    yield;
  }
}

/** Room for all experts on one shard fewer, and some more. */
const MEMORY = Math.ceil((1.2 * NUM_LAYERS * NUM_EXPERTS) / NUM_SHARDS);

function someShard(rank: number, random: Random): PlannedShard {
  return {
    rank,
    secondsPerPair: drawn(1e-6, random),
    secondsPerExpert: drawn(1e-6, random),
    rttSeconds: drawn(1e-4, random),
    bytesPerSecond: drawn(1e9, random),
    memoryBytes: MEMORY,
    loadSecondsPerByte: drawn(1e-9, random),
    draining: false,
    spread: 0.1,
  };
}

/**
 * What a router sends: a copy, with the properties in the order of `plannerInput`. V8 compiles for the very shape of an
 * object, and what is compiled for another is compiled again.
 */
function asSent(
  { load, shards, current }: Pick<PlannerInput, "load" | "shards" | "current">,
  random: Random,
): PlannerInput {
  const cells = load.length;
  const input: PlannerInput = {
    layers: Array.from({ length: NUM_LAYERS }, (_, index) => index),
    numExperts: NUM_EXPERTS,
    topK: TOP_K,
    load,
    uncertainty: load.map((one) => one / 8),
    steps: Array.from({ length: STEPS }, () => load.map((one) => drawn(one, random))),
    together: {
      topN: PARTNERS,
      partners: Uint16Array.from({ length: cells * PARTNERS }, () =>
        drawBelow(random, NUM_EXPERTS),
      ),
      tokens: Float64Array.from({ length: cells * PARTNERS }, () => drawn(16, random)),
    },
    bytes: new Float64Array(cells).fill(1),
    shards,
    router: { secondsPerHop: 1e-5, secondsPerRow: 1e-7, rowBytesOut: 4096, rowBytesIn: 8192 },
    ...(current && { current }),
    moves: { bytes: Infinity, steps: 1e4 },
    minCopies: 1,
    policy: "auto",
  };
  return structuredClone(input);
}

/** About as much, by chance. */
function drawn(mean: number, random: Random): number {
  return mean * Math.exp(0.4 * drawNormal(random));
}
