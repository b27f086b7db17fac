/** What a placement that stands is worth: expected times, who holds how much, and what the loss of a shard would take; pure. */

import { layerTimes, type LayerTime } from "../../../core/placement/cost.ts";
import type { PlacedLayers, PlannerInput, ShardBalance } from "../../../core/placement/planner.ts";
import { lossRecovery } from "../../../core/placement/recovery.ts";

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
  /** Expected time of all MoE layers of one step. */
  readonly stepSeconds: number;
  /** (max − mean) / mean of the shards' seconds, those that hold nothing among them; 0 where nothing is expected. */
  readonly imbalance: number;
  /** Rank that each layer waits for, by layer. */
  readonly binding: ReadonlyMap<number, number>;
  /** Expected seconds of the shards, in the order of the input's, by layer [numShards]. */
  readonly layerSeconds: ReadonlyMap<number, Float64Array>;
  /** In the order of the input's shards. */
  readonly shards: readonly ShardBalance[];
  /** Of the shards that hold something, in the same order. */
  readonly losses: readonly ShardLoss[];
}

/** Judges a placement; copies on ranks that are not among the input's shards are not there. */
export function assess(input: PlannerInput, placed: PlacedLayers): Assessment {
  const times = layerTimes(input, placed);
  const shards = balanceOf(input, placed, times);
  return {
    stepSeconds: times.reduce((sum, { seconds }) => sum + seconds, 0),
    imbalance: imbalanceOf(shards.map(({ seconds }) => seconds)),
    binding: new Map(
      input.layers.flatMap((layer, index) => {
        const rank = input.shards[times[index].slowest]?.rank;
        return rank === undefined ? [] : [[layer, rank] as const];
      }),
    ),
    layerSeconds: new Map(input.layers.map((layer, index) => [layer, times[index].shardSeconds])),
    shards,
    losses: lossRecovery(input, placed).map(({ rank, homes, bytes, seconds, homeless }) => ({
      rank,
      experts: homes.length + homeless.length,
      bytes,
      loadSeconds: seconds,
      homeless: homeless.length,
    })),
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
