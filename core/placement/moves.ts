/** From one placement to another without ever being without an expert, or out of memory. */

import { Holdings, type Copy, type StageLimits } from "./holdings.ts";
import type { Move, PlacedLayers } from "./input.ts";

export type { StageLimits } from "./holdings.ts";

/** Loads, then drops, that lead from one placement to the other; by layer, expert and rank. */
export function movesBetween(current: PlacedLayers, target: PlacedLayers): Move[] {
  return [...copiesBeside(target, current, "load"), ...copiesBeside(current, target, "drop")];
}

/** The moves of a sequence of placements, one after the other. */
export function movesOf(current: PlacedLayers, stages: readonly PlacedLayers[]): Move[] {
  return stages.flatMap((stage, i) => movesBetween(i === 0 ? current : stages[i - 1], stage));
}

/** Copies of `layers` that `others` does not have. */
function copiesBeside(layers: PlacedLayers, others: PlacedLayers, kind: Move["kind"]): Move[] {
  const moves: Move[] = [];
  for (const [layer, replicas] of layers) {
    const there = others.get(layer);
    for (const [expert, copies] of replicas.entries()) {
      for (const { rank } of copies) {
        if (there?.[expert]?.some((copy) => copy.rank === rank) === true) continue;
        moves.push({ kind, layer, expert, rank });
      }
    }
  }
  return moves;
}

/**
 * Placements to adopt one after the other, from `current` to `target`; both have the same layers. Each together with the
 * one before fits every rank's memory (a rank that holds more already gets nothing more), and every expert that had a
 * copy keeps one. Where copies stand in each other's way, one is parked where there is room, or a spare one is given
 * up and loaded again later. What can not be moved even so stays where it is: then the last stage is not the target.
 */
export function stagesOf(
  current: PlacedLayers,
  target: PlacedLayers,
  limits: StageLimits,
): PlacedLayers[] {
  const held = new Holdings(current, limits);
  const wanted = new Holdings(target, limits);
  const stages: PlacedLayers[] = [];
  /** Copies that made room for others once: they do not again, so that this ends. */
  const displaced = new Set<string>();
  for (;;) {
    const loads = loadWhatFits(held, wanted, displaced);
    const drops = [...held.copies()].filter(
      (copy) => !wanted.has(copy) && hasWanted(held, wanted, copy),
    );
    // The next stage's loads find the room that this one's drops leave: until it is adopted, both are held.
    const stuck = loads === 0 && drops.length === 0;
    if (stuck) drops.push(...makeRoom(held, wanted, displaced));
    if (stuck && drops.length === 0) break;
    for (const copy of drops) held.remove(copy);
    stages.push(held.toLayers(target, current));
  }
  return stages.length === 0 ? newShares(current, held.toLayers(target, current)) : stages;
}

/** Loads what has room and answers how many; what was given up only where nothing else waits for its rank. */
function loadWhatFits(held: Holdings, wanted: Holdings, displaced: ReadonlySet<string>): number {
  const missing = [...wanted.copies()].filter((copy) => !held.has(copy));
  const waiting = new Set<number>();
  const later: Copy[] = [];
  let loads = 0;
  for (const copy of missing) {
    if (displaced.has(nameOf(copy))) later.push(copy);
    else if (!tryAdd(copy)) waiting.add(copy.rank);
  }
  for (const copy of later) if (!waiting.has(copy.rank)) tryAdd(copy);
  return loads;

  function tryAdd(copy: Copy): boolean {
    if (!held.fits(copy)) return false;
    held.add(copy);
    loads++;
    return true;
  }
}

/** True where a copy of the expert is held at a rank that is to have one. */
function hasWanted(held: Holdings, wanted: Holdings, { layer, expert }: Copy): boolean {
  for (const rank of held.ranksOf(layer, expert)) {
    if (wanted.has({ layer, expert, rank })) return true;
  }
  return false;
}

/**
 * Makes room on every rank that waits for some, with one copy each: one that is to go and has another copy, else one
 * that is to go after a copy of it is parked elsewhere, else one that is to stay and has another copy. Answers what to drop.
 */
function makeRoom(held: Holdings, wanted: Holdings, displaced: Set<string>): Copy[] {
  const waiting = new Set<number>();
  for (const copy of wanted.copies()) if (!held.has(copy)) waiting.add(copy.rank);
  if (waiting.size === 0) return [];
  const drops: Copy[] = [];
  const dropped = new Set<string>();
  const there = [...held.copies()];
  for (const how of [dropSpare, park, giveUp]) {
    for (const rank of waiting) {
      const out = there.find((copy) => copy.rank === rank && how(copy));
      if (out === undefined) continue;
      displaced.add(nameOf(out));
      dropped.add(`${out.layer}/${out.expert}`);
      drops.push(out);
      waiting.delete(rank);
    }
    // What is given up is loaded again: only where nothing else helps.
    if (drops.length > 0) break;
  }
  return drops;

  function isFree(copy: Copy): boolean {
    return !displaced.has(nameOf(copy)) && !dropped.has(`${copy.layer}/${copy.expert}`);
  }
  function isSpare({ layer, expert }: Copy): boolean {
    return held.ranksOf(layer, expert).size > 1;
  }
  function dropSpare(copy: Copy): boolean {
    return !wanted.has(copy) && isFree(copy) && isSpare(copy);
  }
  function park(copy: Copy): boolean {
    if (wanted.has(copy) || !isFree(copy)) return false;
    const at = roomiest(held, copy, displaced);
    if (at === undefined) return false;
    held.add(at);
    return true;
  }
  function giveUp(copy: Copy): boolean {
    return isFree(copy) && isSpare(copy);
  }
}

/** Where the expert could wait: the rank with most room that does not hold it. */
function roomiest(held: Holdings, copy: Copy, displaced: Set<string>): Copy | undefined {
  let best: Copy | undefined;
  for (const rank of held.ranks()) {
    const at = { ...copy, rank };
    if (held.has(at) || !held.fits(at) || displaced.has(nameOf(at))) continue;
    if (best === undefined || held.free(rank) > held.free(best.rank)) best = at;
  }
  return best;
}

function nameOf({ layer, expert, rank }: Copy): string {
  return `${layer}/${expert}/${rank}`;
}

/** The one stage that changes shares only, or none where they are as they were. */
function newShares(current: PlacedLayers, next: PlacedLayers): PlacedLayers[] {
  for (const [layer, replicas] of next) {
    for (const [expert, copies] of replicas.entries()) {
      const before = current.get(layer)?.[expert] ?? [];
      for (const { rank, share } of copies) {
        const old = before.find((copy) => copy.rank === rank);
        if (old === undefined || Math.abs(old.share - share) > 1e-6) return [next];
      }
    }
  }
  return [];
}
