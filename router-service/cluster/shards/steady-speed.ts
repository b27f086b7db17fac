/** How fast shards are as plans take them: medians over the last minute or so of answers. What wanders moves no experts. */

import { middle } from "../../../core/middle.ts";

/** One answered dispatch. */
export interface SpeedSample {
  /** Payload bytes, there and back. */
  readonly bytes: number;
  /** Experts of rows that were computed. */
  readonly pairs: number;
  /** From the send to the answer. */
  readonly seconds: number;
  /** Of these, waiting at the shard. */
  readonly queueSeconds: number;
  /** Of these, computing at the shard. */
  readonly computeSeconds: number;
}

/** A shard's speed over what was measured of late; undefined where nothing says it. */
export interface SteadySpeed {
  /** Time of a dispatch whatever its size: on the wire, in both processes, and of computing. */
  readonly roundTripSeconds: number | undefined;
  /** What larger dispatches add to it; undefined as well where they add nothing. */
  readonly bytesPerSecond: number | undefined;
  readonly secondsPerPair: number | undefined;
  /** Answers that this was measured on. */
  readonly samples: number;
  /** Standard deviation of what dispatches took about what this says of them, as a part of it. */
  readonly spread: number;
}

/** A slot has the answers of so many seconds, and at least so many answers. */
const SLOT_SECONDS = 2;
const LEAST_SAMPLES = 16;

/** Slots that count: a small change for good is believed after half of them, 30 s under load. */
const MAX_SLOTS = 30;

/** Slots before whose number the spread is not known, and what it counts as before the first. */
const ENOUGH_SLOTS = 8;
const UNKNOWN_SPREAD = 0.2;

/** So many slots in a row in which dispatches take over twice, or under half, of what is expected say that what was before is over. */
const CHANGED_SLOTS = 3;
const CHANGED_FACTOR = 2;

/** Sizes of dispatches that differ by less than this part say nothing of what size costs. */
const LEAST_VARIATION = 0.1;

/** Part of the mean time per pair that one pair more adds at least: the rest is the dispatch's. */
const LEAST_PER_PAIR = 0.05;

/** What no pair takes less than: shards tell their times in whole microseconds. */
const LEAST_SECONDS = 1e-9;

/** Of a normal distribution, its standard deviation is so many times the median distance from its median. */
const DEVIATION_PER_MEDIAN = 1.4826;

/** Answers that what a shard declares counts as much as. */
const DECLARED_SAMPLES = 32;

/** What is known of how fast a shard computes. */
export interface KnownSpeed {
  readonly measured: Pick<SteadySpeed, "secondsPerPair" | "samples">;
  /** What the shard says of itself; 0: nothing. */
  readonly pairsPerSecond: number;
}

/** Sums of points, as a straight line through them needs them. */
interface Points {
  x: number;
  y: number;
  xx: number;
  xy: number;
}

/** The answers of some seconds. */
interface Slot {
  readonly beganAt: number;
  samples: number;
  /** Seconds on the wire over bytes, and seconds of computing over pairs. */
  readonly wire: Points;
  readonly compute: Points;
}

/** Where x = 0, and what each x adds. */
interface Line {
  readonly base: number;
  readonly slope: number;
}

/** The last minute or so of one shard's answers; of those longer ago where there were none since. */
export class SteadySpeedMeter {
  #slots: Slot[] = [];
  #open: Slot | undefined;
  #known: SteadySpeed | undefined;

  /** Takes note of an answer at a time, seconds of any clock that only goes forward. */
  observe(sample: SpeedSample, at: number): void {
    const { bytes, pairs, seconds, queueSeconds, computeSeconds } = sample;
    const slot = (this.#open ??= {
      beganAt: at,
      samples: 0,
      wire: noPoints(),
      compute: noPoints(),
    });
    slot.samples++;
    addPoint(slot.wire, bytes, Math.max(0, seconds - queueSeconds - computeSeconds));
    addPoint(slot.compute, pairs, computeSeconds);
    if (at - slot.beganAt < SLOT_SECONDS || slot.samples < LEAST_SAMPLES) return;
    this.#open = undefined;
    this.#slots.push(slot);
    if (this.#slots.length > MAX_SLOTS) this.#slots.shift();
    if (hasChanged(this.#slots)) this.#slots = this.#slots.slice(-CHANGED_SLOTS);
    this.#known = undefined;
  }

  /** What the slots say that are complete. */
  get steady(): SteadySpeed {
    return (this.#known ??= steadyOf(this.#slots));
  }
}

function steadyOf(slots: readonly Slot[]): SteadySpeed {
  const unsure = UNKNOWN_SPREAD * Math.max(0, 1 - slots.length / ENOUGH_SLOTS);
  if (slots.length === 0) {
    return {
      roundTripSeconds: undefined,
      bytesPerSecond: undefined,
      secondsPerPair: undefined,
      samples: 0,
      spread: unsure,
    };
  }
  const lines = linesOf(slots);
  const { wire, compute } = lines;
  const off = slots.map((slot) => Math.abs(offBy(slot, lines)));
  return {
    roundTripSeconds: wire.base + compute.base,
    bytesPerSecond: wire.slope > 0 ? 1 / wire.slope : undefined,
    secondsPerPair: Math.max(LEAST_SECONDS, compute.slope),
    samples: slots.reduce((sum, { samples }) => sum + samples, 0),
    spread: Math.max(unsure, DEVIATION_PER_MEDIAN * (middle(off) ?? 0)),
  };
}

/** Whether the last slots are all as far from those before, to the same side, that they are of another time. */
function hasChanged(slots: readonly Slot[]): boolean {
  const before = slots.slice(0, -CHANGED_SLOTS);
  if (before.length === 0) return false;
  const lines = linesOf(before);
  const off = slots
    .slice(-CHANGED_SLOTS)
    .map((slot) => offBy(slot, lines) / Math.log(CHANGED_FACTOR));
  return off.every((one) => one > 1) || off.every((one) => one < -1);
}

/** What the slots say of the wire and of computing. */
interface Lines {
  readonly wire: Line;
  readonly compute: Line;
}

function linesOf(slots: readonly Slot[]): Lines {
  return {
    wire: lineOf(slots, "wire", { least: 0, otherwise: 0 }),
    // Where all dispatches are of one size, their time is their pairs': more of them will take longer.
    compute: lineOf(slots, "compute", { least: LEAST_PER_PAIR, otherwise: 1 }),
  };
}

/** Logarithm of what a slot's dispatches took over what is expected of them. */
function offBy({ samples, wire, compute }: Slot, lines: Lines): number {
  const expected = (line: Line, { x }: Points) => line.base + (line.slope * x) / samples;
  const then = expected(lines.wire, wire) + expected(lines.compute, compute);
  return Math.log(((wire.y + compute.y) / samples + LEAST_SECONDS) / (then + LEAST_SECONDS));
}

/** The median of the slots' slopes, at least `least` of their mean y / x, or `otherwise` of it where none is known. */
function lineOf(
  slots: readonly Slot[],
  of: "wire" | "compute",
  { least, otherwise }: { readonly least: number; readonly otherwise: number },
): Line {
  const slopes = slots.flatMap((slot) => slopeOf(slot[of], slot.samples) ?? []);
  const ratio = middle(slots.map(({ [of]: { x, y } }) => (x > 0 ? y / x : 0))) ?? 0;
  const slope = Math.min(ratio, Math.max(least * ratio, middle(slopes) ?? otherwise * ratio));
  const bases = slots.map(({ [of]: { x, y }, samples }) => (y - slope * x) / samples);
  return { slope, base: Math.max(0, middle(bases) ?? 0) };
}

/** Undefined where the points are of about one x. */
function slopeOf({ x, y, xx, xy }: Points, count: number): number | undefined {
  const spread = xx / count - (x / count) ** 2;
  if (spread <= (LEAST_VARIATION * (x / count)) ** 2) return undefined;
  return (xy / count - (x / count) * (y / count)) / spread;
}

function noPoints(): Points {
  return { x: 0, y: 0, xx: 0, xy: 0 };
}

function addPoint(points: Points, x: number, y: number): void {
  points.x += x;
  points.y += y;
  points.xx += x * x;
  points.xy += x * y;
}

/**
 * Seconds per pair of each shard, as plans take them: what a shard declares counts as DECLARED_SAMPLES answers beside what
 * was measured, so that few answers move no experts. Shards declare what they do on their own terms: what all of them were
 * measured to take more or less than they say, at the median, is taken out first. Means are of logarithms: ten times as
 * slow weighs as much as ten times as fast. Undefined where nothing is known.
 */
export function steadySecondsPerPair(shards: readonly KnownSpeed[]): (number | undefined)[] {
  const off = shards.flatMap(({ measured: { secondsPerPair }, pairsPerSecond }) =>
    secondsPerPair === undefined || pairsPerSecond <= 0
      ? []
      : [Math.log(secondsPerPair * pairsPerSecond)],
  );
  const usual = middle(off) ?? 0;
  return shards.map(({ measured: { secondsPerPair, samples }, pairsPerSecond }) => {
    if (pairsPerSecond <= 0) return secondsPerPair;
    const declared = usual - Math.log(pairsPerSecond);
    if (secondsPerPair === undefined) return Math.exp(declared);
    const part = samples / (samples + DECLARED_SAMPLES);
    return Math.exp(part * Math.log(secondsPerPair) + (1 - part) * declared);
  });
}
