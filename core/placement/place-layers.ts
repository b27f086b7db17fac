/** Plans all layers one after the other, in the memory that all of them share. */

import { balance } from "./balance.ts";
import { heldLayer, holdersIn, shardIndices } from "./cost.ts";
import { expectedLoads } from "./expected-loads.ts";
import type { PlannerInput } from "./input.ts";
import { copiesOf, type Layer } from "./layer.ts";
import type { MoveCosts } from "./move-costs.ts";
import { packMinCopies, packMissing } from "./pack.ts";
import { improve, planFresh } from "./plan-layer.ts";
import type { Room } from "./propose.ts";
import { roomOfLayer } from "./room.ts";

/**
 * Elementary operations that the search of a layer has for each of its experts and shards, where the input says nothing:
 * its part of PLAN_OPERATIONS, but no more than MOST_EFFORT, and no fewer than LEAST_EFFORT, or LEAST_ALONE where
 * changes are judged by the forecast alone. A few layers are searched until little is left to find: what the first search
 * misses, the next plan would load. They bound the time without a clock: the same input gives the same plan.
 */
const PLAN_OPERATIONS = 460_000;
const MOST_EFFORT = 3000;
const LEAST_EFFORT = 60;
const LEAST_ALONE = 220;

/** Shard indices that hold each expert of each layer [numMoeLayers][numExperts]. */
export type Holders = readonly (readonly (readonly number[])[])[];

/** What the input holds now, on shards that are there and not draining. */
export function currentHolders(input: PlannerInput): Holders {
  const { layers, shards, current } = input;
  const staying = new Map([...shardIndices(shards)].filter(([, shard]) => !shards[shard].draining));
  return layers.map((layer) => holdersIn(input, staying, current?.layers.get(layer)));
}

/**
 * Of these copies, those that fit their shards' memory: where a shard has less than it holds, copies of experts that have
 * others go first, then those of least load.
 */
export function fittingHolders(input: PlannerInput, holders: Holders): Holders {
  const { bytes, load, numExperts, shards } = input;
  const left = freeBytes(input);
  for (let cell = 0; cell < bytes.length; cell++) {
    const copies = holders[Math.floor(cell / numExperts)][cell % numExperts];
    for (let i = 0; i < copies.length; i++) left[copies[i]] -= bytes[cell];
  }
  if (left.every((free) => free >= 0)) return holders;
  const cells = holders.flat().map((copies) => copies.slice());
  for (const shard of shards.keys()) {
    if (left[shard] >= 0) continue;
    const held = [...cells.keys()].filter((cell) => cells[cell].includes(shard));
    held.sort(
      (a, b) =>
        Number(cells[a].length === 1) - Number(cells[b].length === 1) || load[a] - load[b] || a - b,
    );
    for (const cell of held) {
      if (left[shard] >= 0) break;
      cells[cell] = cells[cell].filter((one) => one !== shard);
      left[shard] += bytes[cell];
    }
  }
  return holders.map((_, index) => cells.slice(index * numExperts, (index + 1) * numExperts));
}

/** Every expert on the shard with most room, the largest first: where sizes are so unequal that layers' rooms do not do. */
export function largestFirst(input: PlannerInput): Holders | undefined {
  const left = freeBytes(input);
  const { bytes, numExperts } = input;
  const holders = input.layers.map(() => Array.from({ length: numExperts }, () => [-1]));
  for (const cell of [...bytes.keys()].sort((a, b) => bytes[b] - bytes[a] || a - b)) {
    let roomiest = 0;
    for (let shard = 1; shard < left.length; shard++) {
      if (left[shard] > left[roomiest]) roomiest = shard;
    }
    if (!(left[roomiest] >= bytes[cell])) return undefined;
    left[roomiest] -= bytes[cell];
    holders[Math.floor(cell / numExperts)][cell % numExperts] = [roomiest];
  }
  return holders;
}

/** All layers planned from nothing; undefined where experts find no room so. */
export function placeFresh(input: PlannerInput): Layer[] | undefined {
  const left = freeBytes(input);
  const layers: Layer[] = [];
  const ahead = bytesAhead(input);
  for (const index of input.layers.keys()) {
    const room = roomOf(input, index, left, ahead[index]);
    const moves = { ...moveCosts(input, undefined, index), left: Infinity };
    const layer = planFresh({ input, index, room, moves, operations: operationsOf(input) }, left);
    if (layer === undefined) return undefined;
    take(left, layer, room.sizes);
    layers.push(layer);
  }
  return layers;
}

/** Layers that hold their experts, and what they leave of each shard's memory. */
export interface HeldLayers {
  readonly layers: Layer[];
  /** Bytes [numShards]. */
  readonly left: Float64Array;
}

/** All layers with the copies in `kept` and no more than what is missing beside; undefined where experts find no room so. */
export function placeMissing(input: PlannerInput, kept: Holders): HeldLayers | undefined {
  const left = freeBytes(input);
  const layers = input.layers.map((_, index) => {
    const holders = kept[index].map((copies) => copies.slice());
    return heldLayer(input, index, copiesOf(holders, left.length));
  });
  for (const [index, layer] of layers.entries()) take(left, layer, sizesOf(input, index));
  if (left.some((bytes) => bytes < 0)) return undefined;
  // What has no copy comes first, wherever there is room.
  for (const [index, layer] of layers.entries()) {
    balance(layer);
    if (packMissing(layer, roomWith(input, index, left)).length > 0) return undefined;
  }
  for (const [index, layer] of layers.entries()) {
    packMinCopies(layer, roomWith(input, index, left));
  }
  return { layers, left };
}

/**
 * All layers, the copies in `kept` staying where nothing else is worth its loading; undefined where experts find no room so.
 * `current` is what is held now, where anything is.
 */
export function placeKept(
  input: PlannerInput,
  kept: Holders,
  current: Holders | undefined,
): Layer[] | undefined {
  const held = placeMissing(input, kept);
  if (held === undefined) return undefined;
  const { layers, left } = held;
  const gains = layers.map(possibleGain);
  let gainAhead = gains.reduce((sum, gain) => sum + gain, 0);
  const ahead = bytesAhead(input);
  let budget = input.moves.bytes;
  for (const [index, layer] of layers.entries()) {
    const room = roomOf(input, index, left, ahead[index]);
    // Of what may be moved, a layer gets as much as it could gain.
    const allowed = gainAhead > 0 ? Math.min(budget, budget * (gains[index] / gainAhead)) : 0;
    const moves = {
      ...moveCosts(input, current, index),
      left: budget === Infinity ? Infinity : allowed,
    };
    give(left, layer, room.sizes);
    improve(layer, { input, index, room, moves, operations: operationsOf(input) });
    take(left, layer, room.sizes);
    if (budget !== Infinity) budget -= allowed - moves.left;
    gainAhead -= gains[index];
  }
  return layers;
}

/** Seconds that the slowest shard is above the mean. */
function possibleGain({ seconds: [seconds] }: Layer): number {
  const mean = seconds.reduce((sum, one) => sum + one, 0) / seconds.length;
  return Math.max(...seconds) - mean;
}

/** Memory of each shard that may get experts; whole experts where all are of one size. */
function freeBytes({ shards, bytes }: PlannerInput): Float64Array {
  const [size] = bytes;
  const whole = bytes.every((one) => one === size);
  return Float64Array.from(shards, ({ memoryBytes, draining }) => {
    if (draining) return 0;
    return whole ? Math.floor(memoryBytes / size) * size : memoryBytes;
  });
}

/** Bytes of the experts of each layer and of those after it [numMoeLayers]. */
function bytesAhead({ layers, numExperts, bytes }: PlannerInput): Float64Array {
  const ahead = new Float64Array(layers.length);
  let sum = 0;
  for (let cell = bytes.length - 1; cell >= 0; cell--) {
    sum += bytes[cell];
    if (cell % numExperts === 0) ahead[cell / numExperts] = sum;
  }
  return ahead;
}

/** The layer's part of what is left of each shard. */
function roomOf(input: PlannerInput, index: number, left: Float64Array, ahead: number): Room {
  const sizes = sizesOf(input, index);
  return roomWith(input, index, roomOfLayer({ left, sizes, bytesAhead: ahead }));
}

/** All that is free, for the layer. */
function roomWith(input: PlannerInput, index: number, free: Float64Array): Room {
  const { shards, minCopies = 1 } = input;
  return {
    sizes: sizesOf(input, index),
    free,
    shards: [...shards.keys()].filter((shard) => !shards[shard].draining),
    minCopies,
  };
}

function sizesOf({ bytes, numExperts }: PlannerInput, index: number): Float64Array {
  return bytes.subarray(index * numExperts, (index + 1) * numExperts);
}

function moveCosts(
  input: PlannerInput,
  current: Holders | undefined,
  index: number,
): Omit<MoveCosts, "left"> {
  const { steps } = input.moves;
  return {
    current: current?.[index],
    sizes: sizesOf(input, index),
    secondsPerByte: Float64Array.from(
      input.shards,
      ({ loadSecondsPerByte }) => loadSecondsPerByte / Math.max(1, steps),
    ),
  };
}

function operationsOf(input: PlannerInput): number {
  const { effort, layers, numExperts, shards } = input;
  const each = numExperts + shards.length;
  if (effort !== undefined) return effort * each;
  const least = expectedLoads(input, 0).loads.length === 1 ? LEAST_ALONE : LEAST_EFFORT;
  const affordable = PLAN_OPERATIONS / (layers.length * each);
  return Math.max(least, Math.min(MOST_EFFORT, affordable)) * each;
}

/** Takes what the layer holds from what is left of each shard. */
function take(left: Float64Array, { held }: Layer, sizes: Float64Array): void {
  for (const [shard, experts] of held.entries()) {
    for (const expert of experts) left[shard] -= sizes[expert];
  }
}

function give(left: Float64Array, { held }: Layer, sizes: Float64Array): void {
  for (const [shard, experts] of held.entries()) {
    for (const expert of experts) left[shard] += sizes[expert];
  }
}
