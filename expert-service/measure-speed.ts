/** How fast a shard's device computes experts, measured at its start on weights that mean nothing. */

import type { ExpertDevice, ExpertSizes } from "../core/expert-device.ts";
import { emptyMatrix, type ExpertFormat, type PackedExpert } from "../core/expert-format.ts";
import { middle } from "../core/middle.ts";
import { expertBytes, expertFrom } from "../core/weights.ts";

/** Layer number that no model has. */
const LAYER = -1;

/** Rows of a run: about what a step of decoding brings to a shard. */
const ROWS = 8;

/** Runs after the first, and the time that they may take, milliseconds. */
const MAX_RUNS = 20;
const BUDGET_MS = 150;

/** Bytes of weights that are run through at most. */
const MAX_BYTES = 2 ** 30;

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
  readonly format: ExpertFormat;
  readonly numExperts: number;
  readonly topK: number;
  /** Memory that weights may take, bytes. */
  readonly memoryBytes: number;
  /** Milliseconds, monotonic. */
  readonly now: () => number;
}

/**
 * Experts of a row that the device computes in a second, a few rows at a time; 0 where not one expert fits. The device has
 * no slots afterwards that it had not before. Rejects as the device does.
 */
export async function measurePairsPerSecond(
  device: ExpertDevice,
  { sizes, format, numExperts, topK, memoryBytes, now }: SpeedOptions,
): Promise<number> {
  const fit = Math.floor(Math.min(MAX_BYTES, memoryBytes) / expertBytes(sizes, format));
  const numSlots = Math.min(numExperts, 2 * topK, fit);
  if (numSlots === 0) return 0;
  device.allocate(
    LAYER,
    Array.from({ length: numSlots }, () => format),
  );
  try {
    const expert = madeUpExpert(sizes, format);
    for (let slot = 0; slot < numSlots; slot++) device.loadPacked(LAYER, slot, expert);
    const rows = new Float32Array(ROWS * sizes.hiddenSize).fill(0.01);
    const slots = Uint32Array.from({ length: ROWS * topK }, (_, pair) => pair % numSlots);
    const weights = new Float32Array(ROWS * topK).fill(1 / topK);
    const run = () => device.run(LAYER, rows, slots, weights);
    await run();
    const startedAt = now();
    const times: number[] = [];
    while (times.length < MAX_RUNS && now() - startedAt < BUDGET_MS) {
      const before = now();
      await run();
      times.push(now() - before);
    }
    return (slots.length * 1000) / middle(times)!;
  } finally {
    device.free(LAYER);
  }
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
