/** Plans one layer: on how many shards, who holds what, and what is worth a change. */

import { balanceLoad, slowest } from "./balance.ts";
import { layerOf, type CostInput } from "./cost.ts";
import { expectedLoads, forecastAlone } from "./expected-loads.ts";
import { copiesOf, type Layer, type LayerCosts } from "./layer.ts";
import type { MoveCosts } from "./move-costs.ts";
import { layerCosts, routerSeconds } from "./objective.ts";
import { fillWithCopies, packMinCopies, packMissing } from "./pack.ts";
import type { Room } from "./propose.ts";
import { seededRandom } from "../random.ts";
import { search } from "./search.ts";

/** Sets of fewer shards that are tried. */
const MAX_TRIED = 2;

/** What planning a layer takes. */
export interface LayerTask {
  readonly input: CostInput;
  /** Of the layer in the input. */
  readonly index: number;
  readonly room: Room;
  readonly moves: MoveCosts;
  /** Bound of the search, in elementary operations. */
  readonly operations: number;
}

/**
 * A layer planned from nothing: on as many of the shards as are fastest together. `left` is what each of them has free for
 * this layer and those after it: a layer on few shards takes more of them than its room. Undefined where experts find no room.
 */
export function planFresh(task: LayerTask, left: Float64Array): Layer | undefined {
  const { layer: found, room } = nearest(task, left);
  if (found === undefined) return undefined;
  const { input, index } = task;
  const { length } = room.shards;
  const copies = copiesOf(found.holders, found.numShards);
  const layer = layerOf(input, index, length, expectedLoads(input, index), { copies });
  improve(layer, { ...task, room });
  task.room.free.set(room.free);
  return layer;
}

/** A layer before any search, under the forecast alone, and the room it is in. */
interface Packed {
  readonly layer: Layer | undefined;
  readonly room: Room;
  /** What it takes under the forecast; Infinity where it does not fit. */
  readonly seconds: number;
}

/** The layer in the whole room, or in that of the nearest shards alone: where it is fastest. */
function nearest(task: LayerTask, left: Float64Array): Packed {
  const { room } = task;
  let best = packedIn(task, room);
  for (const { shards, seconds } of fewerShards(task, left)) {
    // Its pairs are never shared out better than perfectly.
    if (seconds > best.seconds) continue;
    const one = packedIn(task, roomOn(shards, room, left));
    // As fast on fewer: what is left out would only get copies that nobody uses.
    if (one.seconds <= best.seconds * (1 + 1e-9)) best = one;
  }
  return best;
}

function packedIn(task: LayerTask, whole: Room): Packed {
  const room = { ...whole, free: whole.free.slice() };
  const layer = packed(task, room);
  const seconds = layer === undefined ? Infinity : slowest(layer.seconds[0]) + routerSeconds(layer);
  return { layer, room, seconds };
}

/** Betters a layer that holds its experts already. */
export function improve(layer: Layer, { index, room, moves, operations }: LayerTask): void {
  search(layer, {
    room,
    moves,
    random: seededRandom(index + 1),
    operations,
  });
  balanceLoad(layer, 0);
}

/** The layer with each expert once, where it is done soonest, and copies in the room that is left. */
function packed({ input, index }: LayerTask, room: Room): Layer | undefined {
  const layer = layerOf(input, index, room.shards.length, forecastAlone(input, index));
  if (packMissing(layer, room).length > 0) return undefined;
  packMinCopies(layer, room);
  fillWithCopies(layer, room);
  return layer;
}

/** Some of the shards, and what the layer takes on them at least: where they share its pairs out perfectly. */
interface FewerShards {
  readonly shards: readonly number[];
  readonly seconds: number;
}

/**
 * The nearest shards alone: one of them, two, four and so on, of which those are tried that would be fastest if
 * pairs could be shared out perfectly; none where distance costs nothing.
 */
function fewerShards({ input, index, room }: LayerTask, left: Float64Array): FewerShards[] {
  const { fixed, perHop, perPairSent, perPair } = layerCosts(input, room.shards.length);
  const far = (shard: number): number => fixed[shard] + perHop[shard] + perPairSent[shard];
  if (room.shards.every((shard) => far(shard) === 0)) return [];
  const nearFirst = room.shards.toSorted(
    (a, b) => far(a) - far(b) || perPair[a] - perPair[b] || left[b] - left[a] || a - b,
  );
  const [forecast] = forecastAlone(input, index).loads;
  const pairs = forecast.reduce((sum, one) => sum + one, 0);
  const bytes = room.sizes.reduce((sum, size) => sum + size, 0);
  const ideals: FewerShards[] = [];
  for (let count = 1; count < nearFirst.length; count *= 2) {
    const shards = nearFirst.slice(0, count);
    if (shards.reduce((sum, shard) => sum + left[shard], 0) < bytes) continue;
    ideals.push({ shards, seconds: idealSeconds(layerCosts(input, count), shards, pairs) });
  }
  return ideals.toSorted((a, b) => a.seconds - b.seconds).slice(0, MAX_TRIED);
}

/** Seconds of a layer whose pairs the shards share out perfectly. */
function idealSeconds(costs: LayerCosts, shards: readonly number[], pairs: number): number {
  let rate = 0;
  let ahead = 0;
  let hops = 0;
  let sent = 0;
  for (const shard of shards) {
    rate += 1 / costs.perPair[shard];
    ahead += costs.fixed[shard] / costs.perPair[shard];
    hops += costs.perHop[shard];
    sent += costs.perPairSent[shard] / costs.perPair[shard];
  }
  return (pairs + ahead) / rate + hops + (pairs * sent) / rate;
}

/** Room for each expert once on these shards, in proportion to what each has left, and what the layer has there anyway. */
function roomOn(shards: readonly number[], room: Room, left: Float64Array): Room {
  const bytes = room.sizes.reduce((sum, size) => sum + size, 0);
  const largest = room.sizes.reduce((max, size) => Math.max(max, size), 0);
  const part = Math.min(1, bytes / shards.reduce((sum, shard) => sum + left[shard], 0));
  const free = new Float64Array(left.length);
  for (const shard of shards) {
    const whole = Math.ceil((left[shard] * part) / largest - 1e-9) * largest;
    free[shard] = Math.max(room.free[shard], Math.min(left[shard], whole));
  }
  return { ...room, shards: shards.toSorted((a, b) => a - b), free };
}
