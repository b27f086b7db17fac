/** Inputs of the planner for tests: what a test does not say is alike for all shards, and costs one second per pair. */

import type { PlannedShard, PlannerInput } from "../../../core/placement/planner.ts";

/** Loads of the layers, and what differs from the plainest cluster. */
export interface TestCluster extends Partial<Omit<PlannerInput, "load" | "shards">> {
  /** Pairs per expert of each layer. */
  readonly loads: readonly (readonly number[])[];
  /** Experts of one byte that each shard has room for. */
  readonly room: readonly number[];
  readonly shards?: readonly Partial<PlannedShard>[];
}

/** One layer or more on shards that compute a pair in a second and are no distance away. */
export function plannerInput({ loads, room, shards = [], ...others }: TestCluster): PlannerInput {
  return {
    layers: loads.map((_, index) => index),
    numExperts: loads[0].length,
    topK: 1,
    load: Float64Array.from(loads.flat()),
    bytes: new Float64Array(loads.length * loads[0].length).fill(1),
    shards: room.map((memoryBytes, rank) => ({
      rank,
      memoryBytes,
      secondsPerPair: 1,
      secondsPerExpert: 0,
      rttSeconds: 0,
      bytesPerSecond: Infinity,
      loadSecondsPerByte: 1,
      draining: false,
      ...shards[rank],
    })),
    router: { secondsPerHop: 0, secondsPerRow: 0, rowBytesOut: 1, rowBytesIn: 1 },
    moves: { bytes: Infinity, steps: 1e9 },
    ...others,
  };
}
