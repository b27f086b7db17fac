/** Changes that may make a layer's slowest shard faster. */

import { indexOfMost } from "./balance.ts";
import { holds, type Layer } from "./layer.ts";
import { drawBelow, type Random } from "../random.ts";

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

/** Part of the changes that bring experts together, where that saves rows. */
const GATHERING = 0.5;
/** Experts that are looked at for one of about the same load. */
const LOOKED_AT = 4;

/** A change that may make the layer faster; undefined where what was drawn is none. */
export function propose(
  layer: Layer,
  room: Room,
  focus: number,
  random: Random,
): Change | undefined {
  const gathers = layer.together !== undefined && random() < GATHERING;
  return gathers ? gather(layer, room, random) : relieve(layer, room, focus, random);
}

/** Brings an expert to one that it goes together with, in exchange for another of about the same load. */
function gather(layer: Layer, { free, sizes }: Room, random: Random): Change | undefined {
  const { together, holders, held, loads } = layer;
  const expert = drawBelow(random, layer.numExperts);
  const partners = together!.partners[expert];
  if (partners.length === 0) return undefined;
  const partner = partners[drawBelow(random, partners.length)];
  const to = holders[expert][drawBelow(random, holders[expert].length)];
  const from = holders[partner][drawBelow(random, holders[partner].length)];
  if (!mayHave(layer, partner, to)) return undefined;
  let back = -1;
  for (let n = 0; n < LOOKED_AT; n++) {
    const other = held[to][drawBelow(random, held[to].length)];
    if (other === expert || !mayHave(layer, other, from)) continue;
    if (back < 0 || isNearer(loads[0], partner, other, back)) back = other;
  }
  if (back < 0) return undefined;
  if (free[to] + sizes[back] < sizes[partner] || free[from] + sizes[partner] < sizes[back]) {
    return undefined;
  }
  return {
    add: [
      { expert: partner, shard: to },
      { expert: back, shard: from },
    ],
    remove: [
      { expert: partner, shard: from },
      { expert: back, shard: to },
    ],
  };
}

/** True where the load of `one` is nearer to that of `expert` than that of `other` is. */
function isNearer(load: Float64Array, expert: number, one: number, other: number): boolean {
  return Math.abs(load[one] - load[expert]) < Math.abs(load[other] - load[expert]);
}

/**
 * Takes an expert of the shard that is slowest under load `focus` to another: a copy of it, itself, itself in exchange
 * for another expert, or a copy in place of another's. Undefined where what was drawn is none of them.
 */
function relieve(layer: Layer, room: Room, focus: number, random: Random): Change | undefined {
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
