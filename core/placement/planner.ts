/**
 * Decides where every expert lives: what of the current placement stays, room for what has no copy, then layer by layer
 * what is worth a change. The objective stands in objective.ts, on one screen.
 */

import { countText, offersText } from "../amounts.ts";
import { replicasOf } from "./cost.ts";
import { PlacementError, PlannerInputError } from "./errors.ts";
import type { PlacedLayers, Plan, PlannerInput, PlanReason } from "./input.ts";
import type { Layer } from "./layer.ts";
import { withMinCopies } from "./min-copies.ts";
import { movesBetween, movesOf, sameCopies, stagesOf } from "./moves.ts";
import { layerCosts, scoreOf } from "./objective.ts";
import { LEAST_PART, partWay } from "./part-way.ts";
import { LEAST_GAIN_OF_LOADS } from "./search.ts";
import {
  currentHolders,
  fittingHolders,
  largestFirst,
  placeFresh,
  placeKept,
  placeMissing,
  type Holders,
} from "./place-layers.ts";
import { targetOf } from "./policies.ts";
import {
  bytesHeld,
  limitsOf,
  liveCurrent,
  loadedBy,
  secondsIfComplete,
  sumOfSeconds,
  timesOfInput,
  whyOf,
} from "./why.ts";

export type * from "./input.ts";
export { PlacementError, PlannerInputError } from "./errors.ts";

/** A placement that takes no more than so many times the ideal is not made anew. */
const NEAR_IDEAL = 1.5;

/**
 * Part of a step's time that a plan which loads anything must save where nothing has to move: a search that goes on from
 * its own result finds up to 1.5 % more.
 */
const LEAST_GAIN_OF_PLANS = 0.02;

/** The same of one that loads nothing: where other shares of the same copies are as good, they stay. */
const LEAST_GAIN = 1e-6;

/**
 * A placement for the load ahead, and how to get there from the current one. The same input gives the same plan.
 * Throws PlacementError where the experts do not fit the shards, PlannerInputError where the input contradicts itself.
 */
export function planPlacement(input: PlannerInput): Plan {
  checkInput(input);
  const current = liveCurrent(input);
  const limits = limitsOf(input);
  const wanted = wantedLayers(input, current);
  const timesOf = timesOfInput(input);
  const direct = movesBetween(current, wanted);
  if (input.current === undefined) {
    const why = whyOf(input, current, wanted, direct, timesOf);
    return { target: wanted, moves: direct, stages: [wanted], why };
  }
  const asked = (input.policy ?? "auto") !== "auto" || (input.minCopies ?? 1) > 1;
  const mustMove = asked || drains(input, current) || isCrowded(input, current);
  const ideal = {
    secondsBefore: secondsIfComplete(current, timesOf),
    secondsAfter: sumOfSeconds(timesOf(wanted)),
    ...loadedBy(input, direct),
  };
  // Ways there cost no less than what they lead to.
  if (!mustMove && !isWorthwhile(ideal)) return stay();
  const within = { ...limits, reloadBytes: reloadBytes(input, ideal.movedBytes) };
  const stages = stagesOf(current, wanted, within, direct);
  // What it takes is known then.
  if (leadTo(wanted, stages)) stages[stages.length - 1] = wanted;
  const target = stages.at(-1) ?? current;
  const moves = movesOf(current, stages);
  const why = whyOf(input, current, target, moves, timesOf);
  return mustMove || isWorthwhile(why) ? { target, moves, stages, why } : stay();

  function stay(): Plan {
    const why = whyOf(input, current, current, [], timesOf);
    return { target: current, moves: [], stages: [], why };
  }
}

/** True where the last stage has the same copies. */
function leadTo(wanted: PlacedLayers, stages: readonly PlacedLayers[]): boolean {
  const last = stages.at(-1);
  return last !== undefined && sameCopies(last, wanted);
}

/**
 * False where a plan brings too little for its loads, or for nothing at all: what stands in the way of a move may leave it
 * half done, and worse than nothing.
 */
function isWorthwhile(why: Omit<PlanReason, "savingDeviation" | "binding" | "shards">): boolean {
  const { secondsBefore, secondsAfter, moveSecondsPerStep, movedBytes } = why;
  if (secondsBefore === undefined) return true;
  const least = movedBytes > 0 ? LEAST_GAIN_OF_PLANS : LEAST_GAIN;
  return secondsAfter + moveSecondsPerStep <= (1 - least) * secondsBefore;
}

function drains({ shards }: PlannerInput, current: PlacedLayers): boolean {
  const draining = new Set(shards.filter((one) => one.draining).map(({ rank }) => rank));
  if (draining.size === 0) return false;
  return [...current.values()].some((replicas) =>
    replicas.some((copies) => copies.some(({ rank }) => draining.has(rank))),
  );
}

/** True where a shard that stays holds more than it has memory for: it has less than when that was planned. */
function isCrowded(input: PlannerInput, current: PlacedLayers): boolean {
  const held = bytesHeld(input, current);
  return input.shards.some(
    ({ draining, memoryBytes }, shard) => !draining && held[shard].bytes > memoryBytes,
  );
}

/** Where the experts are to be. */
function wantedLayers(input: PlannerInput, current: PlacedLayers): PlacedLayers {
  const { policy = "auto", minCopies = 1 } = input;
  if (policy !== "auto") return targetOf(policy, input);
  const layers = input.current === undefined ? first(input) : next(input);
  const placed = placedLayers(input, layers, current);
  return withMinCopies(placed, minCopies, limitsOf(input), current);
}

/** Where nothing is held. */
function first(input: PlannerInput): Layer[] {
  const fresh = placeFresh(input);
  if (fresh !== undefined) return fresh;
  const holders = largestFirst(input);
  const current = input.current && currentHolders(input);
  const layers = holders && placeKept(input, holders, current);
  if (layers === undefined) throw noRoom(input);
  return layers;
}

/**
 * From what is held, the other copies of an expert giving way where that leaves no room; or anew where that is worth the
 * moves, in part where they are beyond the budget.
 */
function next(input: PlannerInput): Layer[] {
  const current = currentHolders(input);
  const fitting = fittingHolders(input, current);
  const all = placeKept(input, fitting, current);
  const holders = all === undefined ? onlyFirst(fitting) : fitting;
  const kept = all ?? placeKept(input, holders, current);
  if (kept === undefined) return first(input);
  if (sumOf(kept) <= NEAR_IDEAL * idealSeconds(input)) return kept;
  const fresh = placeFresh(input);
  if (fresh === undefined) return kept;
  const live = liveCurrent(input);
  const movesTo = (layers: readonly Layer[]) =>
    movesBetween(live, placedLayers(input, layers, live));
  const secondsOf = (layers: readonly Layer[]) =>
    sumOf(layers) + loadedBy(input, movesTo(layers)).moveSecondsPerStep;
  const freshMoves = movesTo(fresh);
  const { movedBytes, moveSecondsPerStep } = loadedBy(input, freshMoves);
  const loads = freshMoves.filter(({ kind }) => kind === "load").length;
  const worthwhile = (LEAST_GAIN_OF_LOADS * loads * sumOf(kept)) / kept.length;
  const keptSeconds = secondsOf(kept);
  if (sumOf(fresh) + moveSecondsPerStep + worthwhile >= keptSeconds) return kept;
  if (movedBytes <= input.moves.bytes + missingBytes(input, fitting)) return fresh;
  const stay = placeMissing(input, holders)!;
  const part = partWay(input, { current, stay, fresh });
  // Where neither brings much, the part leads on.
  const isStuck = keptSeconds > (1 - LEAST_PART) * secondsOf(stay.layers);
  return part !== undefined && (isStuck || secondsOf(part) < keptSeconds) ? part : kept;
}

/** Seconds of a step whose pairs are shared out perfectly, without what hops cost. */
function idealSeconds(input: PlannerInput): number {
  const { perPair } = layerCosts(input, input.shards.length);
  const rate = input.shards.reduce(
    (sum, { draining }, shard) => sum + (draining ? 0 : 1 / perPair[shard]),
    0,
  );
  return input.load.reduce((sum, pairs) => sum + pairs, 0) / rate;
}

/** Bytes of the move budget that the loads of what is wanted leave. */
function reloadBytes(input: PlannerInput, loadedBytes: number): number {
  if (input.moves.bytes === Infinity) return Infinity;
  const must = missingBytes(input, fittingHolders(input, currentHolders(input)));
  return Math.max(0, input.moves.bytes + must - loadedBytes);
}

/** Bytes of the experts that have no copy on a shard that stays and has room for it. */
function missingBytes({ bytes, numExperts }: PlannerInput, held: Holders): number {
  return held.reduce(
    (sum, layer, index) =>
      layer.reduce(
        (total, copies, expert) =>
          total + (copies.length === 0 ? bytes[index * numExperts + expert] : 0),
        sum,
      ),
    0,
  );
}

function onlyFirst(holders: Holders): Holders {
  return holders.map((layer) => layer.map((copies) => copies.slice(0, 1)));
}

function placedLayers(
  input: PlannerInput,
  layers: readonly Layer[],
  current: PlacedLayers,
): PlacedLayers {
  return new Map(
    input.layers.map((number, index) => [
      number,
      replicasOf(layers[index], input, current.get(number)),
    ]),
  );
}

function sumOf(layers: readonly Layer[]): number {
  return layers.reduce((sum, layer) => sum + scoreOf(layer), 0);
}

/** That the experts do not fit the shards, with what they take and what there is. */
export function noRoom({ layers, numExperts, bytes, shards }: PlannerInput): PlacementError {
  const needed = bytes.reduce((sum, one) => sum + one, 0);
  const offered = shards.filter(({ draining }) => !draining).map(({ memoryBytes }) => memoryBytes);
  const leaving = shards.length - offered.length;
  const others = leaving > 0 ? `, ${countText(leaving, "more is", "more are")} draining` : "";
  return new PlacementError(
    `${countText(layers.length, "layer")} of ${countText(numExperts, "expert")} take ${offersText([needed])}; ` +
      `${countText(offered.length, "shard offers", "shards offer")} ${offersText(offered)}${others}`,
  );
}

function checkInput(input: PlannerInput): void {
  const { layers, numExperts, shards } = input;
  const cells = layers.length * numExperts;
  for (const name of ["load", "bytes", "uncertainty"] as const) {
    const values = input[name];
    if (values === undefined) continue;
    if (values.length !== cells) {
      throw new PlannerInputError(
        `${name} has ${values.length} values, ${layers.length} layers of ${numExperts} experts have ${cells}`,
      );
    }
    let bad = 0;
    while (bad < cells && values[bad] >= 0 && values[bad] < Infinity) bad++;
    if (bad === cells) continue;
    throw new PlannerInputError(
      `${name} of layer ${layers[Math.floor(bad / numExperts)]} expert ${bad % numExperts} is ${values[bad]}`,
    );
  }
  if (new Set(shards.map(({ rank }) => rank)).size !== shards.length) {
    throw new PlannerInputError(
      `ranks ${shards.map(({ rank }) => rank).join(", ")} name one twice`,
    );
  }
  for (const { rank, secondsPerPair } of shards) {
    if (secondsPerPair > 0) continue;
    throw new PlannerInputError(
      `rank ${rank} takes ${secondsPerPair} s per pair; more than 0 is needed`,
    );
  }
}
