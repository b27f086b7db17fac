/** What a step takes with a placement that is given, by the objective of the planner. */

import { balance, indexOfMost, splitByShares } from "./balance.ts";
import { expectedLoads, type JudgedLoads } from "./expected-loads.ts";
import { togetherness } from "./gathering.ts";
import type { PlacedLayers, PlannerInput } from "./input.ts";
import { emptyLayer, holdAll, sharesOf, type Layer } from "./layer.ts";
import { layerCosts, pairsOn, scoreOf, secondsPerMeeting } from "./objective.ts";
import type { LayerReplicas, Replica } from "./placement.ts";

/** What predicting takes of the planner's input. */
export type CostInput = Pick<
  PlannerInput,
  | "layers"
  | "numExperts"
  | "topK"
  | "load"
  | "uncertainty"
  | "steps"
  | "together"
  | "reads"
  | "shards"
  | "router"
  | "policy"
>;

/** What is expected of one layer. */
export interface LayerTime {
  /** All of the layer: the slowest shard's, over the forecast and single steps, and the router's part. */
  readonly seconds: number;
  /** Index of the shard that is slowest under the forecast. */
  readonly slowest: number;
  /** Of each shard under the forecast [numShards]. */
  readonly shardSeconds: Float64Array;
  /** Pairs of each shard under the forecast [numShards]. */
  readonly pairs: Float64Array;
}

/**
 * Expected time of each layer, in the order of the input's, every load split as well as the copies allow, with a policy
 * other than ours by the placement's shares, as routers do; experts without a copy cost nothing.
 */
export function layerTimes(input: CostInput, placed: PlacedLayers): LayerTime[] {
  const { policy = "auto", shards } = input;
  const ranks = shards.map(({ rank }) => rank);
  const indexOf = shardIndices(shards);
  // A layer's copies are of no use when its time is known: the next one's take their memory.
  let pairs: Layer["pairs"] | undefined;
  return input.layers.map((number, index) => {
    const replicas = placed.get(number);
    const layer = heldLayer(input, index, holdersIn(input, indexOf, replicas), pairs);
    pairs = layer.pairs;
    if (policy === "auto") balance(layer);
    else splitByShares(layer, (expert, shard) => shareOn(replicas?.[expert], ranks[shard]));
    return timeOf(layer);
  });
}

function shareOn(copies: readonly Replica[] = [], rank: number): number {
  return copies.find((copy) => copy.rank === rank)?.share ?? 0;
}

/** Expected time of a layer as it is split now. */
function timeOf(layer: Layer): LayerTime {
  const [shardSeconds] = layer.seconds;
  return {
    seconds: scoreOf(layer),
    slowest: indexOfMost(shardSeconds),
    shardSeconds,
    pairs: shardSeconds.map((_, shard) => pairsOn(layer, shard)),
  };
}

/** Expected time of all MoE layers of one step. */
export function stepSeconds(input: CostInput, placed: PlacedLayers): number {
  return layerTimes(input, placed).reduce((sum, { seconds }) => sum + seconds, 0);
}

/** Index of each shard among the input's, by its rank. */
export function shardIndices(shards: PlannerInput["shards"]): ReadonlyMap<number, number> {
  return new Map(shards.map(({ rank }, index) => [rank, index]));
}

/** Shard indices that hold each expert; copies elsewhere are left out [numExperts]. */
export function holdersIn(
  { numExperts }: Pick<PlannerInput, "numExperts">,
  indexOf: ReadonlyMap<number, number>,
  replicas: LayerReplicas | undefined,
): number[][] {
  const holders: number[][] = [];
  for (let expert = 0; expert < numExperts; expert++) {
    const ofExpert: number[] = [];
    for (const { rank } of replicas?.[expert] ?? []) {
      const shard = indexOf.get(rank);
      if (shard !== undefined) ofExpert.push(shard);
    }
    holders.push(ofExpert);
  }
  return holders;
}

/** The layer at `index` with copies as given, not balanced yet; `pairs` are another layer's, of no use any more. */
export function heldLayer(
  input: CostInput,
  index: number,
  holders: readonly (readonly number[])[],
  pairs?: Layer["pairs"],
): Layer {
  const used = new Uint8Array(input.shards.length);
  let numUsed = 0;
  for (const shards of holders) {
    for (const shard of shards) {
      numUsed += 1 - used[shard];
      used[shard] = 1;
    }
  }
  const layer = layerOf(input, index, numUsed, expectedLoads(input, index), pairs);
  holdAll(layer, holders);
  return layer;
}

/** The layer at `index` with nothing held, which `numUsed` shards are to share. */
export function layerOf(
  input: CostInput,
  index: number,
  numUsed: number,
  loads: JudgedLoads,
  pairs?: Layer["pairs"],
): Layer {
  return emptyLayer(loads, {
    costs: layerCosts(input, numUsed),
    together: togetherness(input, index, secondsPerMeeting(input, numUsed)),
    pairs,
    reads: input.reads?.subarray(index * input.numExperts, (index + 1) * input.numExperts),
  });
}

/** The layer's copies as a placement has them, with the shares of the forecast's split. */
export function replicasOf(layer: Layer, { shards }: Pick<PlannerInput, "shards">): LayerReplicas {
  return layer.holders.map((holders, expert) => {
    if (holders.length === 1) return [{ rank: shards[holders[0]].rank, share: 1 }];
    const shares = sharesOf(layer, expert);
    return holders
      .map((shard, i) => ({ rank: shards[shard].rank, share: shares[i] }))
      .sort((a, b) => a.rank - b.rank);
  });
}
