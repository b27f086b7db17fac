/** What an ExpertDevice computes in each format, activation and with biases: one suite for the CPU's and the GPU's. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";

import { SILU } from "../../core/cpu/activation.ts";
import type { ExpertDevice, ExpertSizes, ExpertWeights } from "../../core/expert-device.ts";
import type { ExpertFormat } from "../../core/expert-format.ts";
import { expertBytes, packExpert } from "../../core/weights.ts";
import type { ExpertDeviceFactory } from "./expert-device-contract.ts";
import {
  asFormatKeeps,
  assertClose,
  expectedSums,
  testExpert,
  testRun,
} from "../../bench/rig/expert-reference.ts";

/** Sizes with partial groups in every format, a clamp that bites, and biases. */
const SIZES: ExpertSizes = {
  hiddenSize: 136,
  expertIntermediateSize: 72,
  activation: { kind: "clampedSwiglu", alpha: 1.702, limit: 0.5 },
  expertBias: true,
};

/** The same of most families. */
const PLAIN_SIZES: ExpertSizes = { ...SIZES, activation: SILU, expertBias: false };

const MIXED: readonly ExpertFormat[] = ["f16", "int8", "int4-g32"];
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

  describe(`slots in formats on ${name}`, () => {
    const runOf = (numRows: number, topK: number) =>
      testRun(SIZES.hiddenSize, numRows, topK, NUM_SLOTS);

    for (const format of formats) {
      it(
        `sum rows through clamped and biased experts in ${format} as the definition does`,
        withDevice(SIZES, [format], async (device) => {
          const experts = loaded(
            device,
            SIZES,
            Array.from({ length: NUM_SLOTS }, () => format),
          );
          const judged = experts.map((expert) => asFormatKeeps(expert, SIZES, format));
          for (const { rows, slots, weights } of [runOf(1, 4), runOf(29, 2)]) {
            const expected = expectedSums(SIZES, judged, rows, slots, weights);
            assertClose(await device.run(LAYER, rows, slots, weights), expected, 2e-5);
          }
          assert.equal(device.residentBytes(), NUM_SLOTS * expertBytes(SIZES, format));
        }),
      );
    }

    it(
      "sum rows over slots of several formats in one layer, a row alone as among others",
      withDevice(PLAIN_SIZES, MIXED, async (device) => {
        const { hiddenSize } = PLAIN_SIZES;
        const slotFormats = Array.from({ length: NUM_SLOTS }, (_, i) => MIXED[i % MIXED.length]);
        const experts = loaded(device, PLAIN_SIZES, slotFormats);
        const { rows, slots, weights } = runOf(20, 3);
        const judged = experts.map((of, i) => asFormatKeeps(of, PLAIN_SIZES, slotFormats[i]));
        const expected = expectedSums(PLAIN_SIZES, judged, rows, slots, weights);
        const together = await device.run(LAYER, rows, slots, weights);
        assertClose(together, expected, 2e-5);
        for (const row of [0, 17]) {
          const alone = await device.run(
            LAYER,
            rows.slice(row * hiddenSize, (row + 1) * hiddenSize),
            slots.slice(row * 3, (row + 1) * 3),
            weights.slice(row * 3, (row + 1) * 3),
          );
          const among = together.slice(row * hiddenSize, (row + 1) * hiddenSize);
          assertClose(alone, Float64Array.from(among), 1e-6);
        }
        const bytes = slotFormats.map((format) => expertBytes(PLAIN_SIZES, format));
        assert.equal(
          device.residentBytes(),
          bytes.reduce((sum, one) => sum + one, 0),
        );
      }),
    );

    it(
      "take packed experts of their own and refuse others by name",
      withDevice(PLAIN_SIZES, MIXED, async (device) => {
        const [expert] = loaded(device, PLAIN_SIZES, ["int8"]);
        device.allocate(LAYER + 1, ["int8"]);
        device.loadPacked(LAYER + 1, 0, packExpert("one", expert, PLAIN_SIZES, "int8"));
        const { rows, weights } = runOf(3, 2);
        const slots = new Uint32Array(weights.length);
        assert.deepEqual(
          await device.run(LAYER + 1, rows, slots, weights),
          await device.run(LAYER, rows, slots, weights),
        );
        const wrong = packExpert("one", expert, PLAIN_SIZES, "f16");
        assert.throws(
          () => device.loadPacked(LAYER, 0, wrong),
          /layer 3 slot 0: packed in f16, the slot is for int8/,
        );
      }),
    );

    it(
      "refuse an expert without the biases that the sizes name, with others, or with any where there are none",
      withDevice(SIZES, MIXED, async (device) => {
        device.allocate(LAYER, ["f16"]);
        const expert = testExpert(SIZES, 1);
        const { upBias, ...without } = expert;
        assert.throws(() => device.load(LAYER, 0, without), /layer 3 slot 0 upBias: missing.*72/);
        const short = { ...expert, downBias: upBias };
        assert.throws(() => device.load(LAYER, 0, short), /downBias: shape \[72\].*136/);
        assert.throws(
          () => packExpert("one", expert, PLAIN_SIZES, "f16"),
          /one gateBias: the model's experts have no biases/,
        );
      }),
    );
  });
}
