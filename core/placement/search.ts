/** Betters a layer's placement, one change after the other, each from the slowest shard of one of its loads. */

import { balanceLoad } from "./balance.ts";
import { addCopy, removeCopy, type Layer } from "./layer.ts";
import { costOfMoves, type MoveCosts } from "./move-costs.ts";
import { routerSeconds } from "./objective.ts";
import { propose, type Change, type Room } from "./propose.ts";
import { remember, snapshotOf, takeBack, type Snapshot } from "./trial.ts";
import type { Random } from "../random.ts";

/** Rounds of the split while a change is tried, and how far it must have settled. */
const TRIAL_ROUNDS = 6;
const TRIAL_SETTLED = 3e-3;
/** Part of the time that a change must save: less is noise. */
const MARGIN = 1e-6;
/** Part of a layer's time that one load must save: placements do not change for little. */
export const LEAST_GAIN_OF_LOADS = 5e-3;

/** What a search may do. */
export interface SearchOptions {
  readonly room: Room;
  readonly moves: MoveCosts;
  readonly random: Random;
  /** Bound of the work, in elementary operations. */
  readonly operations: number;
}

/** Seconds that count: of the slowest shard under each load, and of the router. */
interface Score {
  readonly slow: readonly number[];
  readonly router: number;
  /** Weighed together. */
  readonly all: number;
}

/** What a change must keep to. */
interface Bounds {
  /** Seconds that it saves at least. */
  readonly least: number;
  /** Seconds of the slowest shard under the forecast at most, unless the router saves some. */
  readonly most: number;
}

/** Changes the layer as long as that makes it faster, by more than moving costs, and the work is not spent. */
export function search(layer: Layer, options: SearchOptions): void {
  const { room, moves } = options;
  const snapshot = snapshotOf(layer);
  let score = scoresOf(layer);
  // Single steps are few and drawn by chance: what evens them out must not unbalance the load as a whole.
  const most = score.slow[0] * (1 + MARGIN);
  let work = 0;
  for (let trial = 0; work < options.operations; trial++) {
    const focus = trial % layer.loads.length;
    const change = propose(layer, room, focus, options.random);
    work += 50;
    if (change === undefined) continue;
    const { seconds, bytes } = costOfMoves(moves, change);
    if (bytes > moves.left) continue;
    apply(layer, change, snapshot);
    const least = leastGain(options, seconds, bytes, score);
    const then = judge(layer, focus, score, { least, most });
    work += (1 + then.judged) * workOfBalance(layer);
    if (then.score === undefined) {
      takeBack(layer, snapshot);
      continue;
    }
    score = then.score;
    moves.left -= bytes;
    for (const { expert, shard } of change.add) room.free[shard] -= room.sizes[expert];
    for (const { expert, shard } of change.remove) room.free[shard] += room.sizes[expert];
  }
}

/** What a change must save: what it costs to load, and where something is loaded a part of the time that is no noise. */
function leastGain(
  { moves }: SearchOptions,
  seconds: number,
  bytes: number,
  { all }: Score,
): number {
  const worthwhile = moves.current !== undefined && bytes > 0;
  return Math.max(seconds, (worthwhile ? LEAST_GAIN_OF_LOADS : MARGIN) * all);
}

function scoresOf(layer: Layer): Score {
  const slow = layer.loads.map((_, l) => balanceLoad(layer, l, TRIAL_ROUNDS, TRIAL_SETTLED));
  const router = routerSeconds(layer);
  return { slow, router, all: slow.reduce((sum, one, l) => sum + layer.weights[l] * one, router) };
}

function workOfBalance({ numShards, shared }: Layer): number {
  return numShards + shared.length * 12;
}

function apply(layer: Layer, change: Change, snapshot: Snapshot): void {
  remember(layer, snapshot, change);
  for (const { expert, shard } of change.add) addCopy(layer, expert, shard);
  for (const { expert, shard } of change.remove) removeCopy(layer, expert, shard);
}

/**
 * The layer's score where that is better by more than `least`: first under the load that the change is for, which most
 * changes fail, then under the others until all that they could bring is too little.
 */
function judge(
  layer: Layer,
  focus: number,
  before: Score,
  { least, most }: Bounds,
): { readonly score?: Score; readonly judged: number } {
  const slow = before.slow.slice();
  const router = routerSeconds(layer);
  let gain = before.router - router;
  const saves = gain > 0;
  for (let judged = 1; judged <= slow.length; judged++) {
    const l = (focus + judged - 1) % slow.length;
    slow[l] = balanceLoad(layer, l, TRIAL_ROUNDS, TRIAL_SETTLED);
    const here = before.slow[l] - slow[l];
    gain += layer.weights[l] * here;
    if (judged === 1 && !saves && here <= MARGIN * before.slow[l]) return { judged };
    if (l === 0 && slow[0] > most && !saves) return { judged };
    if (judged === slow.length && gain > least) {
      return { judged, score: { slow, router, all: before.all - gain } };
    }
    // A slow beginning is made good by nothing that comes after it.
    if (gain < -0.02 * before.all) return { judged };
  }
  return { judged: slow.length };
}
