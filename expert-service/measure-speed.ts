/** How fast a shard's device computes experts, measured at its start on weights that mean nothing. */

import type { ExpertDevice, ExpertSizes } from "../core/expert-device.ts";
import { emptyMatrix, type ExpertFormat, type PackedExpert } from "../core/expert-format.ts";
import { middle } from "../core/middle.ts";
import { expertBytes, expertFrom } from "../core/weights.ts";
import type { FormatSpeed } from "../proto/gen/switchyard/v1/expert.ts";

/** Layer number that no model has. */
const LAYER = -1;

/** Rows of a run: about what a step of decoding brings to a shard. */
const ROWS = 8;

/** Rows of runs in which an expert gets one row at most: two of all experts, one of half of them. */
const FEW_ROWS = [2, 1] as const;

/** Runs after the first, and the time that they may take, milliseconds. */
const MAX_RUNS = 20;
const BUDGET_MS = 150;

/** The same for each of the other measurements, and the time after which no further format is measured. */
const SHORT_BUDGET_MS = 40;
const FORMATS_MS = 500;

/** Bytes of weights that are run through at most, and in each format after the first. */
const MAX_BYTES = 2 ** 30;
const FURTHER_BYTES = 2 ** 27;

/** Part of a run's time per pair that one pair more adds at least. */
const LEAST_PER_PAIR = 0.05;

/** A word of weights and one of scales in each format: small numbers, none of them slow. */
const WORDS: Readonly<Record<ExpertFormat, readonly [weights: number, scales: number]>> = {
  f32: [0x3c23d70a, 0],
  f16: [0x211f211f, 0],
  int8: [0x01010101, 0x3c23d70a],
  "int4-g32": [0x99999999, 0x211f211f],
  "int4-g64": [0x99999999, 0x211f211f],
  "int4-g128": [0x99999999, 0x211f211f],
  mxfp4: [0x11111111, 0x78787878],
};

/** What is measured. */
export interface SpeedOptions {
  readonly sizes: ExpertSizes;
  /** Those that experts may be in, commonest first. */
  readonly formats: readonly ExpertFormat[];
  readonly numExperts: number;
  readonly topK: number;
  /** Memory that weights may take, bytes. */
  readonly memoryBytes: number;
  /** Milliseconds, monotonic. */
  readonly now: () => number;
}

/** What a device was measured to take. */
export interface DeviceSpeed {
  /** Experts of a row that it computes in a second, a few rows at a time, in the commonest format; 0 where not one fits. */
  readonly pairsPerSecond: number;
  /** Those that there was room and time for, commonest first. */
  readonly formats: readonly FormatSpeed[];
}

/**
 * How fast a device computes. It has no slots afterwards that it had not before. Rejects as the device does.
 *
 * A run takes its own time, that of reading each expert that it touches, and that of each pair: three unknowns, of runs
 * of 8 rows (4 for each expert), of 2 (one for each) and of 1 (one for each of half as many).
 */
export async function measureSpeed(
  device: ExpertDevice,
  options: SpeedOptions,
): Promise<DeviceSpeed> {
  const startedAt = options.now();
  let pairsPerSecond = 0;
  const formats: FormatSpeed[] = [];
  for (const format of options.formats) {
    const first = format === options.formats[0];
    if (!first && options.now() - startedAt >= FORMATS_MS) break;
    const measured = await measureFormat(device, format, {
      ...options,
      maxBytes: first ? MAX_BYTES : FURTHER_BYTES,
      budgetMs: first ? BUDGET_MS : SHORT_BUDGET_MS,
    });
    if (measured === undefined) continue;
    formats.push(measured.speed);
    if (first) pairsPerSecond = measured.pairsPerSecond;
  }
  return { pairsPerSecond, formats };
}

interface FormatOptions extends SpeedOptions {
  readonly maxBytes: number;
  readonly budgetMs: number;
}

/** Undefined where not one expert fits. */
async function measureFormat(
  device: ExpertDevice,
  format: ExpertFormat,
  { sizes, numExperts, topK, memoryBytes, maxBytes, budgetMs, now }: FormatOptions,
): Promise<{ readonly pairsPerSecond: number; readonly speed: FormatSpeed } | undefined> {
  const fit = Math.floor(Math.min(maxBytes, memoryBytes) / expertBytes(sizes, format));
  const numSlots = Math.min(numExperts, 2 * topK, fit);
  if (numSlots === 0) return undefined;
  device.allocate(
    LAYER,
    Array.from({ length: numSlots }, () => format),
  );
  try {
    const expert = madeUpExpert(sizes, format);
    for (let slot = 0; slot < numSlots; slot++) device.loadPacked(LAYER, slot, expert);
    const timed = async (numRows: number, budget: number, isWarm = false): Promise<TimedRun> => {
      const rows = new Float32Array(numRows * sizes.hiddenSize).fill(0.01);
      const slots = Uint32Array.from({ length: numRows * topK }, (_, pair) => pair % numSlots);
      const weights = new Float32Array(numRows * topK).fill(1 / topK);
      const run = () => device.run(LAYER, rows, slots, weights);
      if (!isWarm) await run();
      const startedAt = now();
      const times: number[] = [];
      while (times.length < MAX_RUNS && now() - startedAt < budget) {
        const before = now();
        await run();
        times.push(now() - before);
      }
      const { length: pairs } = slots;
      return { pairs, experts: Math.min(pairs, numSlots), seconds: middle(times)! / 1000 };
    };
    const many = await timed(ROWS, budgetMs);
    // Where a run takes so long, what is special about a first one does not show.
    const isSlow = many.seconds * 1000 > SHORT_BUDGET_MS;
    const [all, half] = [
      await timed(FEW_ROWS[0], SHORT_BUDGET_MS, isSlow),
      await timed(FEW_ROWS[1], SHORT_BUDGET_MS, isSlow),
    ];
    return {
      pairsPerSecond: many.pairs / many.seconds,
      speed: { format, ...divided(many, all, half) },
    };
  } finally {
    device.free(LAYER);
  }
}

interface TimedRun {
  readonly pairs: number;
  readonly experts: number;
  readonly seconds: number;
}

/** What each expert and each pair adds; neither is more than all of a run. */
function divided(
  many: TimedRun,
  all: TimedRun,
  half: TimedRun,
): Pick<FormatSpeed, "secondsPerExpert" | "secondsPerPair"> {
  const most = many.seconds / many.pairs;
  const slope = (many.seconds - all.seconds) / (many.pairs - all.pairs);
  const secondsPerPair = Math.min(most, Math.max(LEAST_PER_PAIR * most, slope));
  const experts = all.experts - half.experts;
  const reading = all.seconds - half.seconds - secondsPerPair * (all.pairs - half.pairs);
  const secondsPerExpert =
    experts === 0 ? 0 : Math.min(all.seconds / all.experts, Math.max(0, reading / experts));
  return { secondsPerExpert, secondsPerPair };
}

function madeUpExpert(sizes: ExpertSizes, format: ExpertFormat): PackedExpert {
  const [weights, scales] = WORDS[format];
  return expertFrom(sizes, format, {
    matrix: (rows, columns) => {
      const made = emptyMatrix(format, rows, columns);
      made.weights.fill(weights);
      made.scales.fill(scales);
      return made;
    },
    bias: (length) => new Float32Array(length),
  });
}
