/** From one placement to another without ever being without an expert, or out of memory. */

import { Holdings, type Copy, type StageLimits } from "./holdings.ts";
import type { Move, PlacedLayers } from "./input.ts";
import type { Replica } from "./placement.ts";

/** Loads, then drops, that lead from one placement to the other; by layer, expert and rank. */
export function movesBetween(current: PlacedLayers, target: PlacedLayers): Move[] {
  return [...copiesBeside(target, current, "load"), ...copiesBeside(current, target, "drop")];
}

/** The moves of a sequence of placements, one after the other. */
export function movesOf(current: PlacedLayers, stages: readonly PlacedLayers[]): Move[] {
  return stages.flatMap((stage, i) => movesBetween(i === 0 ? current : stages[i - 1], stage));
}

/** True where no copy moves between the two, which have the same layers. */
export function sameCopies(one: PlacedLayers, other: PlacedLayers): boolean {
  for (const [layer, replicas] of one) {
    const others = other.get(layer)!;
    for (let expert = 0; expert < replicas.length; expert++) {
      const copies = replicas[expert];
      if (copies.length !== others[expert].length) return false;
      for (let i = 0; i < copies.length; i++) {
        if (!holds(others[expert], copies[i].rank)) return false;
      }
    }
  }
  return true;
}

/** Copies of `layers` that `others` does not have. */
function copiesBeside(layers: PlacedLayers, others: PlacedLayers, kind: Move["kind"]): Move[] {
  const moves: Move[] = [];
  for (const [layer, replicas] of layers) {
    const there = others.get(layer);
    if (there === replicas) continue;
    for (let expert = 0; expert < replicas.length; expert++) {
      const copies = replicas[expert];
      const before = there?.[expert];
      if (before === copies) continue;
      for (let i = 0; i < copies.length; i++) {
        const { rank } = copies[i];
        if (before !== undefined && holds(before, rank)) continue;
        moves.push({ kind, layer, expert, rank });
      }
    }
  }
  return moves;
}

function holds(copies: readonly Replica[], rank: number): boolean {
  for (let i = 0; i < copies.length; i++) if (copies[i].rank === rank) return true;
  return false;
}

/** What is under way: it changes from stage to stage. */
interface Journey {
  readonly held: Holdings;
  readonly target: PlacedLayers;
  /** Copies that are to be loaded. */
  incoming: Copy[];
  /** Copies that are to go. */
  outgoing: Copy[];
  /** Copies that made room for others once: they do not again, so that this ends. */
  readonly displaced: Set<number>;
  readonly bytes: StageLimits["bytes"];
  /** Bytes that may still be loaded again after they gave way. */
  reloadBytes: number;
  readonly minCopies: number;
}

/**
 * Placements to adopt one after the other, from `current` to `target`; both have the same layers. Each together with the
 * one before fits every rank's memory (a rank that holds more already gets nothing more), and every expert that had a
 * copy keeps one. Where copies stand in each other's way, one is parked where there is room, or a spare one is given
 * up, and loaded again later as far as the limits allow that, or as its expert needs it. What can not be moved even so stays where it is: then, or
 * where what was given up is not loaded again, the last stage is not the target. `moves` are those between the two.
 */
export function stagesOf(
  current: PlacedLayers,
  target: PlacedLayers,
  limits: StageLimits,
  moves: readonly Move[] = movesBetween(current, target),
): PlacedLayers[] {
  const journey: Journey = {
    held: new Holdings(current, limits),
    target,
    incoming: moves.filter(({ kind }) => kind === "load"),
    outgoing: moves.filter(({ kind }) => kind === "drop"),
    displaced: new Set(),
    bytes: limits.bytes,
    reloadBytes: limits.reloadBytes ?? Infinity,
    minCopies: limits.minCopies ?? 1,
  };
  const { held } = journey;
  const stages: PlacedLayers[] = [];
  for (;;) {
    const loads = loadWhatFits(journey);
    // The next stage's loads find the room that this one's drops leave: until it is adopted, both are held.
    let drops = journey.outgoing.filter((copy) => hasWanted(journey, copy));
    const stuck = loads === 0 && drops.length === 0;
    if (stuck) drops = makeRoom(journey);
    if (stuck && drops.length === 0) break;
    for (const copy of drops) held.remove(copy);
    const gone = new Set(drops.map(keyOf));
    journey.outgoing = journey.outgoing.filter((copy) => !gone.has(keyOf(copy)));
    stages.push(held.toLayers(target, current));
  }
  return stages.length === 0 ? newShares(current, held.toLayers(target, current)) : stages;
}

/** Loads what has room and answers how many; what was given up only where nothing else waits for its rank. */
function loadWhatFits(journey: Journey): number {
  const { held, displaced, incoming } = journey;
  const waiting = new Set<number>();
  const loaded = new Set<Copy>();
  for (const again of [false, true]) {
    for (const copy of incoming) {
      if (displaced.has(keyOf(copy)) !== again || (again && waiting.has(copy.rank))) continue;
      if (held.fits(copy)) {
        held.add(copy);
        loaded.add(copy);
      } else if (!again) waiting.add(copy.rank);
    }
  }
  journey.incoming = incoming.filter((copy) => !loaded.has(copy));
  return loaded.size;
}

/** True where a copy of the expert is held at a rank that is to have one. */
function hasWanted({ held, target }: Journey, { layer, expert }: Copy): boolean {
  for (const { rank } of target.get(layer)![expert]) {
    if (held.has({ layer, expert, rank })) return true;
  }
  return false;
}

/**
 * Makes room on every rank that waits for some, with one copy each: one that is to go and has another copy, else one
 * that is to go after a copy of it is parked elsewhere, else one that is to stay and has another copy. Answers what to drop.
 */
function makeRoom(journey: Journey): Copy[] {
  const { held, incoming, outgoing, displaced } = journey;
  const waiting = new Set(incoming.map(({ rank }) => rank));
  if (waiting.size === 0) return [];
  const drops: Copy[] = [];
  const dropped = new Set<number>();
  displace(outgoing, isSpare);
  if (drops.length === 0) displace([...outgoing], park);
  // What is given up is loaded again: only where nothing else helps, and first what may be missing if it is not.
  if (drops.length === 0) {
    displace(held.copies(), isBeyondAsked);
    if (drops.length === 0) displace(held.copies(), isSpare);
    journey.incoming = [...incoming, ...drops.filter(mayBeReloaded)];
  }
  return drops;

  /** Within what may be loaded again; beyond it where the expert would be left with fewer copies than are asked for. */
  function mayBeReloaded(copy: Copy): boolean {
    const bytes = journey.bytes(copy.layer, copy.expert);
    if (bytes > journey.reloadBytes) return !isBeyondAsked(copy);
    journey.reloadBytes -= bytes;
    return true;
  }

  function displace(copies: Iterable<Copy>, how: (copy: Copy) => boolean): void {
    for (const copy of copies) {
      if (!waiting.has(copy.rank)) continue;
      const expert = keyOf({ ...copy, rank: 0 });
      if (displaced.has(keyOf(copy)) || dropped.has(expert)) continue;
      if (!how(copy)) continue;
      displaced.add(keyOf(copy));
      dropped.add(expert);
      drops.push(copy);
      waiting.delete(copy.rank);
    }
  }
  function isSpare({ layer, expert }: Copy): boolean {
    return held.numCopies(layer, expert) > 1;
  }
  /** The copy is held yet. */
  function isBeyondAsked({ layer, expert }: Copy): boolean {
    return held.numCopies(layer, expert) > Math.max(1, journey.minCopies);
  }
  function park(copy: Copy): boolean {
    const at = roomiest(held, copy, displaced);
    if (at === undefined) return false;
    held.add(at);
    outgoing.push(at);
    return true;
  }
}

/** Where the expert could wait: the rank with most room that does not hold it. */
function roomiest(held: Holdings, copy: Copy, displaced: Set<number>): Copy | undefined {
  let best: Copy | undefined;
  for (const rank of held.ranks()) {
    const at = { ...copy, rank };
    if (held.has(at) || !held.fits(at) || displaced.has(keyOf(at))) continue;
    if (best === undefined || held.free(rank) > held.free(best.rank)) best = at;
  }
  return best;
}

/** A number that no other copy has: of layers there are fewer than 2^21, of experts and ranks no more than 2^16. */
function keyOf({ layer, expert, rank }: Copy): number {
  return (layer * 2 ** 16 + expert) * 2 ** 16 + rank;
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
