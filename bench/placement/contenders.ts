/** Placements to compare on the recorded model's layers: static, EPLB's, and the planner's. */

import { eplb } from "../../core/placement/eplb.ts";
import { planPlacement, type PlannerInput } from "../../core/placement/planner.ts";
import { copyTable, type SplitCosts } from "../../core/placement/copy-table.ts";
import { chooseReplicas } from "../../core/placement/split.ts";
import { RECORDED_SHAPE } from "../routing/recorded.ts";

const { layers, numExperts, topK } = RECORDED_SHAPE;

/** Shards of a comparison. */
export interface Shards {
  /** Time of a pair on each [numShards]. */
  readonly secondsPerPair: readonly number[];
  /** Memory that goes to second copies, as a part of one copy of all experts. */
  readonly redundancy: number;
}

/** Seconds of the slowest shard under the pairs of one layer. */
export type LayerSeconds = (index: number, pairs: Float64Array) => number;

/** Expert e on shard e mod n, whatever it gets; memory for copies is not used. */
export function staticSeconds({ secondsPerPair }: Shards): LayerSeconds {
  return (_, pairs) => {
    const seconds = secondsPerPair.map(() => 0);
    for (const [expert, count] of pairs.entries()) {
      const shard = expert % seconds.length;
      seconds[shard] += count * secondsPerPair[shard];
    }
    return Math.max(...seconds);
  };
}

/** EPLB on the load; its copies share evenly, and layers take turns where the slots of a shard do not divide by them. */
export function eplbSeconds(
  { secondsPerPair, redundancy }: Shards,
  load: Float64Array,
): LayerSeconds {
  const numShards = secondsPerPair.length;
  const perLayer = (numExperts * (1 + redundancy)) / numShards;
  const placed = layers.map((_, index) => {
    const slots = Math.floor((index + 1) * perLayer) - Math.floor(index * perLayer);
    return eplb(ofLayer(load, index), slots * numShards, numShards);
  });
  return (index, pairs) => {
    const { experts, copies } = placed[index];
    return Math.max(
      ...experts.map((slots, shard) =>
        slots.reduce(
          (sum, expert) => sum + (pairs[expert] / copies[expert]) * secondsPerPair[shard],
          0,
        ),
      ),
    );
  };
}

/** The planner's input on the load, beside other settings of it. */
export function inputOf(
  { secondsPerPair, redundancy }: Shards,
  load: Float64Array,
  settings: Partial<PlannerInput> = {},
): PlannerInput {
  const copies = Math.floor(
    (layers.length * numExperts * (1 + redundancy)) / secondsPerPair.length,
  );
  return {
    layers,
    numExperts,
    topK,
    load,
    bytes: new Float64Array(layers.length * numExperts).fill(1),
    shards: secondsPerPair.map((seconds, rank) => ({
      rank,
      memoryBytes: copies,
      secondsPerPair: seconds,
      secondsPerExpert: 0,
      rttSeconds: 0,
      bytesPerSecond: Infinity,
      loadSecondsPerByte: 0,
      draining: false,
    })),
    router: { secondsPerHop: 0, secondsPerRow: 0, rowBytesOut: 1, rowBytesIn: 1 },
    moves: { bytes: Infinity, steps: 1 },
    ...settings,
  };
}

/** The planner's placement: with the load at hand split over the copies, and with the plan's own shares. */
export function plannedSeconds(input: PlannerInput): {
  readonly atHand: LayerSeconds;
  readonly asPlanned: LayerSeconds;
} {
  const { target } = planPlacement(input);
  const costs = splitCosts(input);
  const ranks = input.shards.map(({ rank }) => rank);
  const tables = layers.map((layer) => copyTable(target.get(layer)!, ranks));
  return {
    atHand: (index, pairs) => {
      const table = tables[index];
      const taken = chooseReplicas(pairs, table, costs);
      const seconds = ranks.map(() => 0);
      for (const [copy, shard] of table.shards.entries()) {
        seconds[shard] += taken[copy] * costs.perPair[shard];
      }
      return Math.max(...seconds);
    },
    asPlanned: (index, pairs) => {
      const seconds = ranks.map(() => 0);
      for (const [expert, copies] of target.get(layers[index])!.entries()) {
        for (const { rank, share } of copies) {
          seconds[rank] += pairs[expert] * share * costs.perPair[rank];
        }
      }
      return Math.max(...seconds);
    },
  };
}

/** Costs at dispatch as the planner has them. */
export function splitCosts({ shards, router }: PlannerInput): SplitCosts {
  const perShard = (of: (shard: PlannerInput["shards"][number]) => number) =>
    Float64Array.from(shards, of);
  return {
    fixed: perShard(({ rttSeconds }) => rttSeconds),
    perHop: perShard(() => router.secondsPerHop),
    perRow: perShard(() => router.secondsPerRow),
    perPair: perShard(({ secondsPerPair }) => secondsPerPair),
    perExpert: perShard(({ secondsPerExpert }) => secondsPerExpert),
  };
}

/** (slowest − ideal) / ideal of a layer: the ideal is its pairs shared out perfectly. */
export function imbalance(
  { secondsPerPair }: Shards,
  seconds: LayerSeconds,
  index: number,
  pairs: Float64Array,
): number {
  const total = pairs.reduce((sum, count) => sum + count, 0);
  const rate = secondsPerPair.reduce((sum, one) => sum + 1 / one, 0);
  return (seconds(index, pairs) * rate) / total - 1;
}

/** One layer of an array over layers and experts. */
export function ofLayer(values: Float64Array, index: number): Float64Array {
  return values.subarray(index * numExperts, (index + 1) * numExperts);
}
