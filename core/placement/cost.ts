/** What a step takes with a placement that is given, by the objective of the planner. */

import { balance, indexOfMost, splitByShares } from "./balance.ts";
import { expectedLoads, type JudgedLoads } from "./expected-loads.ts";
import { togetherness } from "./gathering.ts";
import type { PlacedLayers, PlannerInput } from "./input.ts";
import { copiesOf, layerWith, sharesOf } from "./layer.ts";
import type { Layer, LayerCopies, LayerStart } from "./layer.ts";
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
    const layer = heldLayer(input, index, placedCopies(input, indexOf, replicas), pairs);
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
    const copies = replicas?.[expert];
    const first = copies?.length === 1 ? indexOf.get(copies[0].rank) : undefined;
    holders.push(first === undefined ? severalIn(indexOf, copies) : [first]);
  }
  return holders;
}

function severalIn(
  indexOf: ReadonlyMap<number, number>,
  copies: readonly Replica[] = [],
): number[] {
  const holders: number[] = [];
  for (const { rank } of copies) {
    const shard = indexOf.get(rank);
    if (shard !== undefined) holders.push(shard);
  }
  return holders;
}

/** Copies of layers that are placed on some shards: what a placement takes is asked more than once. */
const known = new WeakMap<PlannerInput["shards"], WeakMap<LayerReplicas, LayerCopies>>();

/** Copies of a layer on the input's shards, of which `indexOf` are the indices: for layers whose copies stay as they are. */
export function placedCopies(
  input: Pick<PlannerInput, "numExperts" | "shards">,
  indexOf: ReadonlyMap<number, number>,
  replicas: LayerReplicas | undefined,
): LayerCopies {
  const { shards } = input;
  if (replicas === undefined) return copiesOf(holdersIn(input, indexOf, replicas), shards.length);
  let onShards = known.get(shards);
  if (onShards === undefined) known.set(shards, (onShards = new WeakMap()));
  let copies = onShards.get(replicas);
  if (copies === undefined) {
    copies = copiesOf(holdersIn(input, indexOf, replicas), shards.length);
    onShards.set(replicas, copies);
  }
  return copies;
}

/** The layer at `index` with copies as given, not balanced yet; `pairs` are another layer's, of no use any more. */
export function heldLayer(
  input: CostInput,
  index: number,
  copies: LayerCopies,
  pairs?: Layer["pairs"],
): Layer {
  let numUsed = 0;
  for (const experts of copies.held) if (experts.length > 0) numUsed++;
  return layerOf(input, index, numUsed, expectedLoads(input, index), { copies, pairs });
}

/** The layer at `index`, which `numUsed` shards are to share. */
export function layerOf(
  input: CostInput,
  index: number,
  numUsed: number,
  loads: JudgedLoads,
  start: LayerStart = {},
): Layer {
  const together = input.together && togetherness(input, index, secondsPerMeeting(input, numUsed));
  const reads = input.reads?.subarray(index * input.numExperts, (index + 1) * input.numExperts);
  return layerWith(loads, { costs: layerCosts(input, numUsed), together, reads }, start);
}

/**
 * The layer's copies as a placement has them, with the shares of the forecast's split. An expert on one shard alone, where
 * it is in `before` too, is the same object as there: less is compared, and sent between threads.
 */
export function replicasOf(
  layer: Layer,
  { shards }: Pick<PlannerInput, "shards">,
  before?: LayerReplicas,
): LayerReplicas {
  return layer.holders.map((holders, expert) => {
    if (holders.length === 1) {
      const { rank } = shards[holders[0]];
      const copies = before?.[expert];
      return copies?.length === 1 && copies[0].rank === rank && copies[0].share === 1
        ? copies
        : [{ rank, share: 1 }];
    }
    const shares = sharesOf(layer, expert);
    return holders
      .map((shard, i) => ({ rank: shards[shard].rank, share: shares[i] }))
      .sort((a, b) => a.rank - b.rank);
  });
}
