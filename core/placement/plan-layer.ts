/** Plans one layer: on how many shards, who holds what, and what is worth a change. */

import { balanceLoad } from "./balance.ts";
import { layerOf, type CostInput } from "./cost.ts";
import { expectedLoads, forecastAlone, type JudgedLoads } from "./expected-loads.ts";
import type { Layer, LayerCosts } from "./layer.ts";
import type { MoveCosts } from "./move-costs.ts";
import { layerCosts, scoreOf } from "./objective.ts";
import { fillWithCopies, packMinCopies, packMissing } from "./pack.ts";
import type { Room } from "./propose.ts";
import { seededRandom } from "./random.ts";
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
  const { input, index, room } = task;
  const chosen = nearestRoom(task, left);
  const layer = packed(task, chosen, expectedLoads(input, index));
  if (layer === undefined) return undefined;
  improve(layer, { ...task, room: chosen });
  if (chosen !== room) room.free.set(chosen.free);
  return layer;
}

/** The whole room, or that of the nearest shards alone: in which the layer is fastest before any search. */
function nearestRoom(task: LayerTask, left: Float64Array): Room {
  const { room } = task;
  const fewer = fewerShards(task, left);
  if (fewer.length === 0) return room;
  let best = room;
  let least = packedScore(task, room);
  for (const { shards, seconds } of fewer) {
    // Its experts never share the pairs out better than perfectly.
    if (seconds > least) continue;
    const one = roomOn(shards, room, left);
    const score = packedScore(task, one);
    // As fast on fewer: what is left out would only get copies that nobody uses.
    if (score <= least * (1 + 1e-9)) [best, least] = [one, score];
  }
  return best;
}

/** What the layer takes in a room under the forecast, before any search; Infinity where it does not fit. */
function packedScore(task: LayerTask, room: Room): number {
  const { input, index } = task;
  const layer = packed(task, { ...room, free: room.free.slice() }, forecastAlone(input, index));
  return layer === undefined ? Infinity : scoreOf(layer);
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
function packed({ input, index }: LayerTask, room: Room, loads: JudgedLoads): Layer | undefined {
  const layer = layerOf(input, index, room.shards.length, loads);
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
