/** Part of the way to a placement that is made anew and loads more than may be loaded at once: some of its layers. */

import { balance } from "./balance.ts";
import { heldLayer } from "./cost.ts";
import type { PlannerInput } from "./input.ts";
import { copiesOf, type Layer } from "./layer.ts";
import { scoreOf } from "./objective.ts";
import type { HeldLayers, Holders } from "./place-layers.ts";
import { LEAST_GAIN_OF_LOADS } from "./search.ts";

/**
 * Part of a step's time that a part of the way saves at least, whatever it loads, as far as there is so much to save: who
 * decides about plans refuses those that save little, and the rest of the way would never come.
 */
export const LEAST_PART = 0.1;

/** Layers, one after the other, that are tried in vain before the search for more of them ends. */
const MAX_IN_VAIN = 8;

/** What a part of the way is made of. */
export interface Ways {
  /** What is held now [numMoeLayers][numExperts]. */
  readonly current: Holders;
  /** The layers if nothing moves but what must. */
  readonly stay: HeldLayers;
  /** The layers made anew. */
  readonly fresh: readonly Layer[];
}

/** A layer with its copies, and what those take. */
interface Judged {
  readonly layer: Layer;
  /** Of a step: its own, and what its loads cost. */
  readonly seconds: number;
  readonly bytes: number;
  readonly loads: number;
}

/** Layers that change together, by index. */
type Exchange = ReadonlyMap<number, Judged>;

/** What an exchange brings beside how things are. */
interface Gain {
  readonly seconds: number;
  readonly bytes: number;
  readonly isWorthwhile: boolean;
}

/**
 * The layers as they stay, with as many of them made anew as the move budget allows, those first that save most seconds
 * per byte; beyond the budget as many as it takes to save LEAST_PART of a step, unless the budget is 0 or something must be
 * loaded. In the way of a layer made anew other layers' spare copies are given up, or others go where they are to be when
 * all is made anew. Undefined where no layer is worth its loads.
 */
export function partWay(input: PlannerInput, { current, stay, fresh }: Ways): Layer[] | undefined {
  const { bytes: budget } = input.moves;
  if (budget === 0) return undefined;
  const now = stay.layers.map((layer, index) => judged(input, current, index, layer));
  const anew = fresh.map(({ holders }, index) => judgedWith(input, current, index, holders));
  const before = now.reduce((sum, { seconds }) => sum + seconds, 0);
  // What must be loaded does not wait for more than the budget has beside it.
  const mustLoad = now.some(({ loads }) => loads > 0);
  const order = byWorth(now, anew);
  const taken = new Set<number>();
  let left: Float64Array = stay.left;
  let loaded = 0;
  let saved = 0;
  const takeWhile = (wanted: (bytes: number) => boolean): void => {
    let inVain = 0;
    for (const index of order) {
      if (inVain === MAX_IN_VAIN) break;
      if (taken.has(index) || !wanted(anew[index].bytes - now[index].bytes)) continue;
      const found = exchanged(input, { current, fresh, now, taken, left }, index);
      const gain = found && gainOf(now, found.layers);
      if (found === undefined || !gain!.isWorthwhile || !wanted(gain!.bytes)) {
        inVain++;
        continue;
      }
      inVain = 0;
      for (const [changed, layer] of found.layers) now[changed] = layer;
      taken.add(index);
      left = found.left;
      loaded += gain!.bytes;
      saved += gain!.seconds;
    }
  };
  takeWhile((bytes) => loaded + bytes <= budget);
  if (!mustLoad) takeWhile(() => saved < LEAST_PART * before);
  return taken.size === 0 ? undefined : now.map(({ layer }) => layer);
}

/** Layers that are better anew, those first that save most seconds per byte. */
function byWorth(now: readonly Judged[], anew: readonly Judged[]): number[] {
  const worth = now.map(({ seconds, bytes }, index) => {
    const saved = seconds - anew[index].seconds;
    const more = anew[index].bytes - bytes;
    if (saved <= 0) return 0;
    return more > 0 ? saved / more : Infinity;
  });
  const order = [...worth.keys()].filter((index) => worth[index] > 0);
  // Those that load nothing are alike.
  return order.sort((a, b) => (worth[a] === worth[b] ? a - b : worth[b] - worth[a]));
}

/** What is so far, while layers are taken over. */
interface Way extends Pick<Ways, "current" | "fresh"> {
  readonly now: readonly Judged[];
  /** Layers that are as they are to be. */
  readonly taken: ReadonlySet<number>;
  /** Free bytes [numShards]. */
  readonly left: Float64Array;
}

/** The layer at `index` made anew, and others that make room for it; undefined where they can not. */
function exchanged(
  input: PlannerInput,
  way: Way,
  index: number,
): { readonly layers: Exchange; readonly left: Float64Array } | undefined {
  const { bytes, numExperts } = input;
  const { current, fresh, now } = way;
  const left = way.left.slice();
  const changed = new Map<number, number[][]>([[index, fresh[index].holders]]);
  for (let expert = 0; expert < numExperts; expert++) {
    const size = bytes[index * numExperts + expert];
    for (const shard of now[index].layer.holders[expert]) left[shard] += size;
    for (const shard of fresh[index].holders[expert]) left[shard] -= size;
  }
  for (const shard of left.keys()) {
    if (left[shard] < 0 && !makeRoom(input, { ...way, left }, changed, shard)) return undefined;
  }
  const layers = new Map<number, Judged>();
  for (const [layer, holders] of changed) {
    layers.set(layer, judgedWith(input, current, layer, holders));
  }
  return { layers, left };
}

/** Takes copies of the other layers off the shard until it has the memory for what it is to hold; false where they do not do. */
function makeRoom(
  { bytes, load, numExperts, minCopies = 1 }: PlannerInput,
  { fresh, now, taken, left }: Way,
  changed: Map<number, number[][]>,
  shard: number,
): boolean {
  const holdersOf = (layer: number) => changed.get(layer) ?? now[layer].layer.holders;
  const [asked] = changed.keys();
  const isWanted = (cell: number) =>
    fresh[Math.floor(cell / numExperts)].holders[cell % numExperts].includes(shard);
  const mayGo = now
    .flatMap((_, layer) =>
      layer === asked || taken.has(layer)
        ? []
        : holdersOf(layer).flatMap((copies, expert) =>
            copies.includes(shard) ? [layer * numExperts + expert] : [],
          ),
    )
    // What is to be there in the end would be loaded again.
    .sort((a, b) => Number(isWanted(a)) - Number(isWanted(b)) || load[a] - load[b] || a - b);
  for (const onlySpare of [true, false]) {
    for (const cell of mayGo) {
      if (left[shard] >= 0) return true;
      const layer = Math.floor(cell / numExperts);
      const expert = cell % numExperts;
      const copies = holdersOf(layer)[expert];
      if (!copies.includes(shard)) continue;
      const others = copies.filter((one) => one !== shard);
      if (others.length < Math.max(1, minCopies)) {
        const to = fresh[layer].holders[expert].find(
          (one) => !copies.includes(one) && left[one] >= bytes[cell],
        );
        if (onlySpare || to === undefined) continue;
        others.push(to);
        left[to] -= bytes[cell];
      }
      left[shard] += bytes[cell];
      changed.set(layer, holdersOf(layer).with(expert, others));
    }
  }
  return left[shard] >= 0;
}

/** What changing these layers brings, and whether that is worth the loads. */
function gainOf(now: readonly Judged[], exchange: Exchange): Gain {
  let seconds = 0;
  let bytes = 0;
  let loads = 0;
  for (const [index, then] of exchange) {
    seconds += now[index].seconds - then.seconds;
    bytes += then.bytes - now[index].bytes;
    loads += then.loads - now[index].loads;
  }
  const mean = now.reduce((sum, one) => sum + one.seconds, 0) / now.length;
  const least = LEAST_GAIN_OF_LOADS * Math.max(0, loads) * mean;
  return { seconds, bytes, isWorthwhile: seconds > 0 && seconds >= least };
}

/** The layer at `index` with these copies, split as well as they allow. */
function judgedWith(
  input: PlannerInput,
  current: Holders,
  index: number,
  holders: readonly (readonly number[])[],
): Judged {
  const own = holders.map((copies) => copies.slice());
  const layer = heldLayer(input, index, copiesOf(own, input.shards.length));
  balance(layer);
  return judged(input, current, index, layer);
}

/** The layer at `index` as it is split now. */
function judged(input: PlannerInput, current: Holders, index: number, layer: Layer): Judged {
  const { bytes: sizes, numExperts, shards, moves } = input;
  let seconds = scoreOf(layer);
  let bytes = 0;
  let loads = 0;
  for (const [expert, copies] of layer.holders.entries()) {
    for (const shard of copies) {
      if (current[index][expert].includes(shard)) continue;
      const size = sizes[index * numExperts + expert];
      loads++;
      bytes += size;
      seconds += (size * shards[shard].loadSecondsPerByte) / Math.max(1, moves.steps);
    }
  }
  return { layer, seconds, bytes, loads };
}
