/**
 * What experts of each format take on each shard; pure. Shards measure at their start what reading an expert takes, and
 * what each of its pairs does, by format. Routers measure what pairs take of the load as it is, reading included: that
 * stays, and is divided as the shard declares,
 *
 *   seconds per pair of the load, S = (Σ pairs · w · pair + Σ touches · r · expert) / Σ pairs
 *
 * with pair and expert of the commonest format, w and r those of an expert's own format as multiples of them: for all shards
 * together, as their ratios are of kernels and of bytes, and what one shard measures of them is noise for the most part.
 */

import type { ExpertFormat } from "../../../core/expert-format.ts";
import { touches } from "../../../core/placement/layer.ts";
import type { FormatSpeed } from "../../../proto/gen/switchyard/v1/expert.ts";

/** Multiples are no larger, and no smaller than one part in so many: beyond is a slip of the clock. */
const MOST = 16;

/** Formats of experts, and how often each is chosen. */
export interface FormatLoad {
  /** Of each expert [numMoeLayers · numExperts]. */
  readonly formats: readonly ExpertFormat[];
  /** Pairs of a step [numMoeLayers · numExperts]. */
  readonly load: Float64Array;
}

/** What one shard takes. */
export interface DividedSeconds {
  readonly secondsPerPair: number;
  readonly secondsPerExpert: number;
}

/** How seconds per pair are divided, and what each expert takes as a multiple. */
export interface FormatCosts {
  /** The work of a pair; undefined where all are 1 [numMoeLayers · numExperts]. */
  readonly work: Float64Array | undefined;
  /** The reading of an expert; undefined where all are 1 [numMoeLayers · numExperts]. */
  readonly reads: Float64Array | undefined;
  /** Seconds per pair as they were measured, divided as a shard says. Without its word they are all of pairs. */
  divide(secondsPerPair: number, declared: readonly FormatSpeed[]): DividedSeconds;
}

/** The costs of these experts, by what all shards declare. */
export function formatCosts(
  { formats, load }: FormatLoad,
  shards: readonly (readonly FormatSpeed[])[],
): FormatCosts {
  const common = commonest(formats, load);
  const multiples = (of: (speed: FormatSpeed) => number) => {
    const found = new Map<ExpertFormat, number>();
    for (const format of new Set(formats))
      found.set(format, multipleOf(format, common, shards, of));
    return [...found.values()].every((one) => one === 1)
      ? undefined
      : Float64Array.from(formats, (format) => found.get(format) ?? 1);
  };
  const work = multiples((speed) => speed.secondsPerPair);
  const reads = multiples((speed) => speed.secondsPerExpert);
  // For each pair of the load.
  let [pairs, working, reading] = [0, 0, 0];
  for (let cell = 0; cell < load.length; cell++) {
    pairs += load[cell];
    const worked = load[cell] * (work?.[cell] ?? 1);
    working += worked;
    reading += touches(worked) * (reads?.[cell] ?? 1);
  }
  return {
    work,
    reads,
    divide: (secondsPerPair, declared) => {
      const speed = declared.find(({ format }) => format === common);
      if (speed === undefined || pairs === 0) return { secondsPerPair, secondsPerExpert: 0 };
      const all = (working * speed.secondsPerPair + reading * speed.secondsPerExpert) / pairs;
      const factor = all > 0 ? secondsPerPair / all : 0;
      if (!(factor * speed.secondsPerPair > 0)) return { secondsPerPair, secondsPerExpert: 0 };
      return {
        secondsPerPair: factor * speed.secondsPerPair,
        secondsPerExpert: factor * speed.secondsPerExpert,
      };
    },
  };
}

/** The format of most pairs, or of most experts where there are none. */
function commonest(formats: readonly ExpertFormat[], load: Float64Array): ExpertFormat | undefined {
  const pairs = new Map<ExpertFormat, number>();
  // An expert without load counts as next to nothing.
  for (const [cell, format] of formats.entries()) {
    pairs.set(format, (pairs.get(format) ?? 0) + load[cell] + 1e-9);
  }
  return [...pairs].toSorted((a, b) => b[1] - a[1])[0]?.[0];
}

/** Of all shards that measured both; 1 where none did, or nothing was to be measured. */
function multipleOf(
  format: ExpertFormat,
  common: ExpertFormat | undefined,
  shards: readonly (readonly FormatSpeed[])[],
  of: (speed: FormatSpeed) => number,
): number {
  let [mine, usual] = [0, 0];
  for (const speeds of shards) {
    const both = [format, common].map((name) => speeds.find((one) => one.format === name));
    if (both[0] === undefined || both[1] === undefined) continue;
    // Each shard counts alike, however slow it is.
    const scale = both[1].secondsPerPair;
    if (!(scale > 0)) continue;
    mine += of(both[0]) / scale;
    usual += of(both[1]) / scale;
  }
  return mine > 0 && usual > 0 ? Math.min(MOST, Math.max(1 / MOST, mine / usual)) : 1;
}
