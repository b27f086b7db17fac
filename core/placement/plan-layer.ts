/** Plans one layer: on how many shards, who holds what, and what is worth a change. */

import { balanceLoad } from "./balance.ts";
import { heldLayer, type CostInput } from "./cost.ts";
import { emptyLayer, type Layer } from "./layer.ts";
import type { MoveCosts } from "./move-costs.ts";
import { layerCosts, loadWeights, scoreOf } from "./objective.ts";
import { fillWithCopies, packMinCopies, packMissing } from "./pack.ts";
import type { Room } from "./propose.ts";
import { seededRandom } from "./random.ts";
import { search } from "./search.ts";

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
  const rooms = [room, ...fewerShards(task, left)];
  let best: Room | undefined;
  let least = Infinity;
  for (const one of rooms.length > 1 ? rooms : []) {
    const layer = packed(task, { ...one, free: one.free.slice() });
    const score = layer === undefined ? Infinity : scoreOf(layer);
    if (score < least * (1 - 1e-9)) [best, least] = [one, score];
  }
  const chosen = best ?? room;
  const layer = packed(task, chosen, heldLayer(input, index, []).loads);
  if (layer === undefined) return undefined;
  improve(layer, { ...task, room: chosen });
  if (chosen !== room) room.free.set(chosen.free);
  return layer;
}

/** Betters a layer that holds its experts already. */
export function improve(layer: Layer, { index, room, moves, operations }: LayerTask): void {
  search(layer, {
    weights: loadWeights(layer.loads.length),
    room,
    moves,
    random: seededRandom(index + 1),
    operations,
  });
  balanceLoad(layer, 0);
}

/** The layer packed into the room and filled with copies, judged by the forecast alone or the loads given. */
function packed(
  { input, index }: LayerTask,
  room: Room,
  loads: readonly Float64Array[] = [forecastOf(input, index)],
): Layer | undefined {
  const layer = emptyLayer(loads, layerCosts(input, room.shards.length));
  if (packMissing(layer, room).length > 0) return undefined;
  packMinCopies(layer, room);
  fillWithCopies(layer, room);
  return layer;
}

function forecastOf({ load, numExperts }: CostInput, index: number): Float64Array {
  return load.subarray(index * numExperts, (index + 1) * numExperts);
}

/** Rooms of the nearest shards alone: one of them, two, four and so on; none where distance costs nothing. */
function fewerShards({ input, room }: LayerTask, left: Float64Array): Room[] {
  const { fixed, perHop, perPairSent, perPair } = layerCosts(input, room.shards.length);
  const far = (shard: number): number => fixed[shard] + perHop[shard] + perPairSent[shard];
  if (room.shards.every((shard) => far(shard) === 0)) return [];
  const nearFirst = room.shards.toSorted(
    (a, b) => far(a) - far(b) || perPair[a] - perPair[b] || left[b] - left[a] || a - b,
  );
  const bytes = room.sizes.reduce((sum, size) => sum + size, 0);
  const rooms: Room[] = [];
  for (let count = 1; count < nearFirst.length; count *= 2) {
    const shards = nearFirst.slice(0, count).toSorted((a, b) => a - b);
    const offered = shards.reduce((sum, shard) => sum + left[shard], 0);
    // More than each expert once, but not what other layers could do with.
    const part = Math.min(1, bytes / offered);
    const free = new Float64Array(left.length);
    for (const shard of shards)
      free[shard] = Math.max(
        room.free[shard],
        wholeOf(left[shard] * part, room.sizes, left[shard]),
      );
    rooms.push({ ...room, shards, free });
  }
  return rooms;
}

/** Bytes rounded up to whole experts, at most `most`. */
function wholeOf(bytes: number, sizes: Float64Array, most: number): number {
  const largest = sizes.reduce((max, size) => Math.max(max, size), 0);
  return Math.min(most, Math.ceil(bytes / largest - 1e-9) * largest);
}
