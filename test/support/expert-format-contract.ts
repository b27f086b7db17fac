/** What an ExpertDevice computes in each format, activation and with biases: one suite for the CPU's and the GPU's. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";

import { SILU } from "../../core/cpu/activation.ts";
import type { ExpertDevice, ExpertSizes, ExpertWeights } from "../../core/expert-device.ts";
import type { ExpertFormat } from "../../core/expert-format.ts";
import type { Activation } from "../../core/model/config.ts";
import { expertBytes, packExpert } from "../../core/weights.ts";
import type { ExpertDeviceFactory } from "./expert-device-contract.ts";
import {
  asFormatKeeps,
  assertClose,
  expectedSums,
  testExpert,
  testRun,
} from "./expert-reference.ts";

interface Case extends ExpertSizes {
  readonly numRows: number;
  readonly topK: number;
}

/** What most families have. */
const PLAIN = { activation: SILU, expertBias: false };

/** Sizes of plain experts. */
const PLAIN_CASES: readonly Case[] = [
  { ...PLAIN, hiddenSize: 64, expertIntermediateSize: 40, numRows: 1, topK: 4 },
  { ...PLAIN, hiddenSize: 64, expertIntermediateSize: 40, numRows: 17, topK: 4 },
  { ...PLAIN, hiddenSize: 192, expertIntermediateSize: 64, numRows: 33, topK: 2 },
  { ...PLAIN, hiddenSize: 40, expertIntermediateSize: 24, numRows: 5, topK: 1 },
  { ...PLAIN, hiddenSize: 128, expertIntermediateSize: 8, numRows: 70, topK: 3 },
];
const GPT_OSS: Activation = { kind: "clampedSwiglu", alpha: 1.702, limit: 0.5 };

/** Sizes with partial groups, biases and another activation. */
const VARIANTS: readonly Case[] = [
  {
    ...PLAIN,
    hiddenSize: 104,
    expertIntermediateSize: 40,
    activation: GPT_OSS,
    numRows: 6,
    topK: 2,
  },
  { ...PLAIN, hiddenSize: 136, expertIntermediateSize: 72, expertBias: true, numRows: 40, topK: 3 },
  {
    hiddenSize: 72,
    expertIntermediateSize: 136,
    activation: GPT_OSS,
    expertBias: true,
    numRows: 3,
    topK: 4,
  },
];

const NUM_SLOTS = 7;
const LAYER = 3;

function loaded(
  device: ExpertDevice,
  sizes: ExpertSizes,
  formats: readonly ExpertFormat[],
): ExpertWeights[] {
  const experts = formats.map((_, slot) => testExpert(sizes, LAYER * 100 + slot));
  device.allocate(LAYER, formats);
  for (const [slot, expert] of experts.entries()) device.load(LAYER, slot, expert);
  return experts;
}

/** Registers the suite, over the formats that the devices take. */
export function expertFormatContract(
  name: string,
  create: ExpertDeviceFactory,
  formats: readonly ExpertFormat[],
): void {
  const withDevice =
    (
      sizes: ExpertSizes,
      wanted: readonly ExpertFormat[],
      body: (device: ExpertDevice) => void | Promise<void>,
    ) =>
    async () => {
      const device = await create(sizes, wanted);
      try {
        await body(device);
      } finally {
        device.close();
      }
    };

  describe(`the formats of ${name}`, () => {
    for (const format of formats) {
      for (const { numRows, topK, ...sizes } of [...PLAIN_CASES, ...VARIANTS]) {
        const { hiddenSize, expertIntermediateSize, activation, expertBias } = sizes;
        const kind = `${activation.kind === "silu" ? "" : "clamped "}${expertBias ? "biased " : ""}`;
        const title = `${numRows} rows of ${hiddenSize} through top-${topK} ${kind}experts of ${expertIntermediateSize} in ${format}`;
        it(
          `sums ${title} as the definition does`,
          withDevice(sizes, [format], async (device) => {
            const slotFormats = Array.from({ length: NUM_SLOTS }, () => format);
            const experts = loaded(device, sizes, slotFormats);
            const { rows, slots, weights } = testRun(sizes.hiddenSize, numRows, topK, NUM_SLOTS);
            const judged = experts.map((expert) => asFormatKeeps(expert, sizes, format));
            const expected = expectedSums(sizes, judged, rows, slots, weights);
            assertClose(await device.run(LAYER, rows, slots, weights), expected, 2e-5);
            assert.equal(device.residentBytes(), NUM_SLOTS * expertBytes(sizes, format));
          }),
        );
      }
    }

    it(
      "sums rows over slots of several formats in one layer",
      withDevice(VARIANTS[1], formats, async (device) => {
        const { numRows, topK, ...sizes } = VARIANTS[1];
        const slotFormats = Array.from(
          { length: NUM_SLOTS },
          (_, i) => formats[i % formats.length],
        );
        const experts = loaded(device, sizes, slotFormats);
        const { rows, slots, weights } = testRun(sizes.hiddenSize, numRows, topK, NUM_SLOTS);
        const judged = experts.map((expert, i) => asFormatKeeps(expert, sizes, slotFormats[i]));
        const expected = expectedSums(sizes, judged, rows, slots, weights);
        const together = await device.run(LAYER, rows, slots, weights);
        assertClose(together, expected, 2e-5);
        for (const row of [0, 17]) {
          const alone = await device.run(
            LAYER,
            rows.slice(row * sizes.hiddenSize, (row + 1) * sizes.hiddenSize),
            slots.slice(row * topK, (row + 1) * topK),
            weights.slice(row * topK, (row + 1) * topK),
          );
          const among = together.slice(row * sizes.hiddenSize, (row + 1) * sizes.hiddenSize);
          assertClose(alone, Float64Array.from(among), 1e-6);
        }
        const bytes = slotFormats.reduce((sum, format) => sum + expertBytes(sizes, format), 0);
        assert.equal(device.residentBytes(), bytes);
      }),
    );

    it(
      "takes packed experts in their slot's format and refuses others by name",
      withDevice(VARIANTS[2], formats, async (device) => {
        const { numRows, topK, ...sizes } = VARIANTS[2];
        const experts = loaded(device, sizes, [formats[1]]);
        const packed = packExpert("one", experts[0], sizes, formats[1]);
        device.allocate(LAYER + 1, [formats[1]]);
        device.loadPacked(LAYER + 1, 0, packed);
        const { rows, weights } = testRun(sizes.hiddenSize, numRows, topK, 1);
        const slots = new Uint32Array(numRows * topK);
        assert.deepEqual(
          await device.run(LAYER + 1, rows, slots, weights),
          await device.run(LAYER, rows, slots, weights),
        );
        const wrong = packExpert("one", experts[0], sizes, formats[0]);
        assert.throws(
          () => device.loadPacked(LAYER, 0, wrong),
          new RegExp(`layer 3 slot 0: packed in ${formats[0]}, the slot is for ${formats[1]}`),
        );
      }),
    );

    it(
      "refuses an expert without the biases that the sizes name, and one with others",
      withDevice(VARIANTS[1], ["f32"], (device) => {
        const sizes = VARIANTS[1];
        device.allocate(LAYER, ["f32"]);
        const { upBias: _, ...without } = testExpert(sizes, 1);
        assert.throws(() => device.load(LAYER, 0, without), /layer 3 slot 0 upBias: missing.*72/);
        const expert = testExpert(sizes, 1);
        const short = { ...expert, downBias: expert.upBias };
        assert.throws(() => device.load(LAYER, 0, short), /downBias: shape \[72\].*136/);
      }),
    );
  });
}
