/** Tries a change of a layer and takes it back. */

import { forgetMeetings, type Layer } from "./layer.ts";
import type { Change } from "./propose.ts";

/** What a layer was before a change; made once per search and used again for each trial. */
export interface Snapshot {
  readonly change: { current: Change };
  /** Of each copy that comes or goes. */
  readonly holders: number[][];
  readonly held: number[][];
  readonly shared: number[];
  readonly seconds: readonly Float64Array[];
  /** Pairs of the shared experts and of those that change, one after the other. */
  pairs: Float64Array;
}

/** Copies that a change adds or removes at most. */
const MAX_COPIES = 4;

/** An empty snapshot of the layer's size. */
export function snapshotOf(layer: Layer): Snapshot {
  return {
    change: { current: { add: [], remove: [] } },
    holders: Array.from({ length: MAX_COPIES }, () => []),
    held: Array.from({ length: MAX_COPIES }, () => []),
    shared: [],
    seconds: layer.seconds.map((seconds) => seconds.slice()),
    pairs: new Float64Array(64),
  };
}

/** Remembers the layer before the change. */
export function remember(layer: Layer, snapshot: Snapshot, change: Change): void {
  snapshot.change.current = change;
  copyList(layer.shared, snapshot.shared);
  let i = 0;
  for (const copies of [change.add, change.remove]) {
    for (const { expert, shard } of copies) {
      copyList(layer.holders[expert], snapshot.holders[i]);
      copyList(layer.held[shard], snapshot.held[i++]);
    }
  }
  for (let l = 0; l < layer.seconds.length; l++) snapshot.seconds[l].set(layer.seconds[l]);
  const end = copyPairs(layer, snapshot, true);
  if (end > snapshot.pairs.length) {
    snapshot.pairs = new Float64Array(2 * end);
    copyPairs(layer, snapshot, true);
  }
}

/** Makes the layer what it was. */
export function takeBack(layer: Layer, snapshot: Snapshot): void {
  const { add, remove } = snapshot.change.current;
  let i = 0;
  for (const copies of [add, remove]) {
    for (const { expert, shard } of copies) {
      forgetMeetings(layer, expert);
      copyList(snapshot.holders[i], layer.holders[expert]);
      copyList(snapshot.held[i++], layer.held[shard]);
      forgetMeetings(layer, expert);
    }
  }
  copyList(snapshot.shared, layer.shared);
  for (let l = 0; l < layer.seconds.length; l++) layer.seconds[l].set(snapshot.seconds[l]);
  copyPairs(layer, snapshot, false);
}

function copyList(from: readonly number[], to: number[]): void {
  to.length = from.length;
  for (let i = 0; i < from.length; i++) to[i] = from[i];
}

/** Copies pairs to the snapshot, or back; answers how many. */
function copyPairs(layer: Layer, snapshot: Snapshot, out: boolean): number {
  let at = 0;
  for (const expert of snapshot.shared) at = copyPairsOf(layer, snapshot.pairs, expert, at, out);
  const { add, remove } = snapshot.change.current;
  for (const { expert } of add) at = copyPairsOf(layer, snapshot.pairs, expert, at, out);
  for (const { expert } of remove) at = copyPairsOf(layer, snapshot.pairs, expert, at, out);
  return at;
}

function copyPairsOf(
  { holders, maxCopies, pairs }: Layer,
  kept: Float64Array,
  expert: number,
  start: number,
  out: boolean,
): number {
  const count = holders[expert].length;
  const from = expert * maxCopies;
  let at = start;
  for (let l = 0; l < pairs.length; l++) {
    const ofLoad = pairs[l];
    for (let i = from; i < from + count; i++, at++) {
      if (out) kept[at] = ofLoad[i];
      else ofLoad[i] = kept[at];
    }
  }
  return at;
}
