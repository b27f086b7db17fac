/** Changes that may make a layer's slowest shard faster. */

import { indexOfMost } from "./balance.ts";
import { holds, type Layer } from "./layer.ts";
import { drawBelow, type Random } from "./random.ts";

/** Copies that come and go together. */
export interface Change {
  readonly add: readonly LayerCopy[];
  readonly remove: readonly LayerCopy[];
}

/** A copy of an expert, by index of the shard. */
export interface LayerCopy {
  readonly expert: number;
  readonly shard: number;
}

/** Memory of the layer. */
export interface Room {
  /** Bytes of each expert [numExperts]. */
  readonly sizes: Float64Array;
  /** Bytes that each shard has left for the layer [numShards]. */
  readonly free: Float64Array;
  /** Shards that may get copies, ascending. */
  readonly shards: readonly number[];
  /** Copies that an expert does not go below once it has them. */
  readonly minCopies: number;
}

/**
 * Takes an expert of the shard that is slowest under load `focus` to another: a copy of it, itself, itself in exchange
 * for another expert, or a copy in place of another's. Undefined where what was drawn is none of them.
 */
export function propose(
  layer: Layer,
  room: Room,
  focus: number,
  random: Random,
): Change | undefined {
  const { sizes, free, shards, minCopies } = room;
  const { held, holders } = layer;
  const seconds = layer.seconds[focus];
  const load = layer.loads[focus];
  const slow = indexOfMost(seconds);
  let to = shards[drawBelow(random, shards.length)];
  const other = shards[drawBelow(random, shards.length)];
  if (seconds[other] < seconds[to]) to = other;
  if (to === slow || held[slow].length === 0) return undefined;
  const expert = held[slow][drawBelow(random, held[slow].length)];
  if (!mayHave(layer, expert, to)) return undefined;
  const add = { expert, shard: to };
  const remove = { expert, shard: slow };
  if (free[to] >= sizes[expert]) {
    return { add: [add], remove: random() < 0.5 ? [] : [remove] };
  }
  if (held[to].length === 0) return undefined;
  const back = held[to][drawBelow(random, held[to].length)];
  if (free[to] + sizes[back] < sizes[expert]) return undefined;
  if (holders[back].length > minCopies && random() < 0.6) {
    return { add: [add], remove: [{ expert: back, shard: to }] };
  }
  const fits = free[slow] + sizes[expert] >= sizes[back];
  if (!fits || !mayHave(layer, back, slow) || load[back] > load[expert]) return undefined;
  return {
    add: [add, { expert: back, shard: slow }],
    remove: [remove, { expert: back, shard: to }],
  };
}

/** True where the shard does not hold the expert and it may have one copy more. */
function mayHave(layer: Layer, expert: number, shard: number): boolean {
  return layer.holders[expert].length < layer.maxCopies && !holds(layer, expert, shard);
}
