/** What a placement that stands is worth: expected times, who holds how much, and what the loss of a shard would take; pure. */

import { layerTimes, type LayerTime } from "../../../core/placement/cost.ts";
import {
  noRoom,
  type PlacedLayers,
  type PlannerInput,
  type ShardBalance,
} from "../../../core/placement/planner.ts";
import { lossRecovery, missingRecovery } from "../../../core/placement/recovery.ts";

/** What the loss of a shard would take to mend. */
export interface ShardLoss {
  readonly rank: number;
  /** Experts that nobody else holds. */
  readonly experts: number;
  /** Bytes of those that a survivor has room for. */
  readonly bytes: number;
  /** Until they are loaded there. */
  readonly loadSeconds: number;
  /** Experts that no survivor has room for. */
  readonly homeless: number;
}

/** A placement judged by the load that is expected. */
export interface Assessment {
  /** Expected time of all MoE layers of one step; undefined where experts are missing, without whom there is no step. */
  readonly stepSeconds: number | undefined;
  /** (max − mean) / mean of the shards' seconds, those that hold nothing among them; 0 where nothing is expected; undefined as stepSeconds. */
  readonly imbalance: number | undefined;
  /** Rank that each layer waits for, by layer; empty where experts are missing. */
  readonly binding: ReadonlyMap<number, number>;
  /** Expected seconds of the shards, in the order of the input's, by layer [numShards]; undefined as stepSeconds. */
  readonly layerSeconds: ReadonlyMap<number, Float64Array> | undefined;
  /** In the order of the input's shards; their times mean nothing where experts are missing. */
  readonly shards: readonly ShardBalance[];
  /** Experts without a copy on the input's shards, and those of them that none of these has room for. */
  readonly missing: { readonly experts: number; readonly homeless: number };
  /** Why missing experts have no room; undefined where they have. */
  readonly noRoom: string | undefined;
  /** Of the shards that hold something, in the same order. */
  readonly losses: readonly ShardLoss[];
}

/** Judges a placement; copies on ranks that are not among the input's shards are not there. */
export function assess(input: PlannerInput, placed: PlacedLayers): Assessment {
  const times = layerTimes(input, placed);
  const shards = balanceOf(input, placed, times);
  const { homes, homeless } = missingRecovery(input, placed);
  const missing = { experts: homes.length + homeless.length, homeless: homeless.length };
  const noRoomError = homeless.length === 0 ? undefined : noRoom(input);
  return {
    ...(missing.experts > 0 ? NO_STEP : expectedOf(input, times, shards)),
    shards,
    missing,
    noRoom: noRoomError?.message,
    losses: lossRecovery(input, placed).map(({ rank, homes, bytes, seconds, homeless }) => ({
      rank,
      experts: homes.length + homeless.length,
      bytes,
      loadSeconds: seconds,
      homeless: homeless.length,
    })),
  };
}

type Expected = Pick<Assessment, "stepSeconds" | "imbalance" | "binding" | "layerSeconds">;

/** Of a placement that no step can run by. */
const NO_STEP: Expected = {
  stepSeconds: undefined,
  imbalance: undefined,
  binding: new Map(),
  layerSeconds: undefined,
};

function expectedOf(
  { layers, shards }: PlannerInput,
  times: readonly LayerTime[],
  balance: readonly ShardBalance[],
): Expected {
  return {
    stepSeconds: times.reduce((sum, { seconds }) => sum + seconds, 0),
    imbalance: imbalanceOf(balance.map(({ seconds }) => seconds)),
    binding: new Map(layers.map((layer, index) => [layer, shards[times[index].slowest].rank])),
    layerSeconds: new Map(layers.map((layer, index) => [layer, times[index].shardSeconds])),
  };
}

/** (max − mean) / mean; 0 where all are 0. */
export function imbalanceOf(values: readonly number[]): number {
  const sum = values.reduce((total, value) => total + value, 0);
  return sum === 0 ? 0 : (Math.max(...values) * values.length) / sum - 1;
}

function balanceOf(
  input: PlannerInput,
  placed: PlacedLayers,
  times: readonly LayerTime[],
): ShardBalance[] {
  const held = new Map(input.shards.map(({ rank }) => [rank, { experts: 0, bytes: 0 }]));
  for (const [index, layer] of input.layers.entries()) {
    for (const [expert, copies] of (placed.get(layer) ?? []).entries()) {
      for (const { rank } of copies) {
        const shard = held.get(rank);
        if (shard === undefined) continue;
        shard.experts++;
        shard.bytes += input.bytes[index * input.numExperts + expert];
      }
    }
  }
  return input.shards.map(({ rank, memoryBytes }, shard) => ({
    rank,
    experts: held.get(rank)?.experts ?? 0,
    bytes: held.get(rank)?.bytes ?? 0,
    memoryBytes,
    pairs: times.reduce((sum, { pairs }) => sum + pairs[shard], 0),
    seconds: times.reduce((sum, { shardSeconds }) => sum + shardSeconds[shard], 0),
  }));
}
