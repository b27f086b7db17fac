/** What every ExpertDevice does: one suite for the CPU's and the GPU's. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";

import type { ExpertDevice, ExpertSizes, ExpertWeights } from "../../core/expert-device.ts";
import { NO_SLOT } from "../../core/expert-device.ts";
import type { ExpertFormat } from "../../core/expert-format.ts";
import { SILU } from "../../core/cpu/activation.ts";
import { f32FromBytes } from "../../core/tensor.ts";
import {
  assertClose,
  expectedSums,
  roundedToBf16,
  roundedToF16,
  testExpert,
  testRun,
  testValues,
  toDtype,
} from "../../bench/rig/expert-reference.ts";

/** Makes a device of its own for each test; the suite closes it. */
export type ExpertDeviceFactory = (
  sizes: ExpertSizes,
  formats: readonly ExpertFormat[],
) => ExpertDevice | Promise<ExpertDevice>;

const NUM_SLOTS = 7;
const LAYER = 3;

/** Registers the suite. */
export function expertDeviceContract(name: string, create: ExpertDeviceFactory): void {
  describe(`${name} as an ExpertDevice`, () => {
    const withDevice =
      (
        sizes: ExpertSizes,
        format: ExpertFormat,
        body: (device: ExpertDevice) => void | Promise<void>,
      ) =>
      async () => {
        const device = await create(sizes, [format]);
        try {
          await body(device);
        } finally {
          device.close();
        }
      };
    const loaded = (device: ExpertDevice, sizes: ExpertSizes, layer = LAYER): ExpertWeights[] => {
      const experts = Array.from({ length: NUM_SLOTS }, (_, slot) =>
        testExpert(sizes, layer * 100 + slot),
      );
      device.allocate(
        layer,
        experts.map(() => "f32"),
      );
      for (const [slot, expert] of experts.entries()) device.load(layer, slot, expert);
      return experts;
    };
    const sizes: ExpertSizes = {
      hiddenSize: 64,
      expertIntermediateSize: 40,
      activation: SILU,
      expertBias: false,
    };

    it(
      "gives zeros for rows whose experts are all elsewhere",
      withDevice(sizes, "f32", async (device) => {
        loaded(device, sizes);
        const { rows } = testRun(64, 3, 2, NUM_SLOTS);
        const slots = new Uint32Array(6).fill(NO_SLOT);
        const sums = await device.run(LAYER, rows, slots, new Float32Array(6).fill(1));
        assert.deepEqual(sums, new Float32Array(rows.length));
      }),
    );

    it(
      "answers runs that overlap each with its own sums, and repeats them bit by bit",
      withDevice(sizes, "f32", async (device) => {
        loaded(device, sizes);
        const runs = [1, 9, 4, 20].map((numRows) => testRun(64, numRows, 3, NUM_SLOTS));
        const alone: Float32Array[] = [];
        for (const { rows, slots, weights } of runs) {
          alone.push(await device.run(LAYER, rows, slots, weights));
        }
        const together = await Promise.all(
          runs.map(({ rows, slots, weights }) => device.run(LAYER, rows, slots, weights)),
        );
        for (const [index, sums] of together.entries()) assert.deepEqual(sums, alone[index]);
      }),
    );

    it(
      "gives a row the same sum alone and among others",
      withDevice(sizes, "f32", async (device) => {
        loaded(device, sizes);
        const { rows, slots, weights } = testRun(64, 12, 4, NUM_SLOTS);
        const all = await device.run(LAYER, rows, slots, weights);
        const alone = await device.run(
          LAYER,
          rows.slice(5 * 64, 6 * 64),
          slots.slice(20, 24),
          weights.slice(20, 24),
        );
        assertClose(alone, Float64Array.from(all.slice(5 * 64, 6 * 64)), 1e-6);
      }),
    );

    it(
      "keeps layers apart and takes a freed layer's place again",
      withDevice(sizes, "f32", async (device) => {
        const { rows, slots, weights } = testRun(64, 4, 2, NUM_SLOTS);
        const first = loaded(device, sizes, 1);
        const held = device.residentBytes();
        assert.equal(held, NUM_SLOTS * 3 * 64 * 40 * 4);
        loaded(device, sizes, 2);
        assert.equal(device.residentBytes(), 2 * held);
        device.free(2);
        assert.equal(device.residentBytes(), held);
        await assert.rejects(device.run(2, rows, slots, weights), /layer 2/);
        const third = loaded(device, sizes, 2);
        const second = await device.run(2, rows, slots, weights);
        assertClose(second, expectedSums(sizes, third, rows, slots, weights), 2e-5);
        const firstSums = await device.run(1, rows, slots, weights);
        assertClose(firstSums, expectedSums(sizes, first, rows, slots, weights), 2e-5);
      }),
    );

    it(
      "takes another expert into a slot that had one",
      withDevice(sizes, "f32", async (device) => {
        const experts = loaded(device, sizes);
        const { rows, slots, weights } = testRun(64, 6, 4, NUM_SLOTS);
        await device.run(LAYER, rows, slots, weights);
        experts[2] = testExpert(sizes, 999);
        device.load(LAYER, 2, experts[2]);
        const sums = await device.run(LAYER, rows, slots, weights);
        assertClose(sums, expectedSums(sizes, experts, rows, slots, weights), 2e-5);
      }),
    );

    it(
      "reads weights in BF16 and F16 exactly, from misaligned bytes too",
      withDevice(sizes, "f32", async (device) => {
        const expert = roundedToBf16(testExpert(sizes, 5));
        device.allocate(LAYER, ["f32", "f32"]);
        device.load(LAYER, 0, toDtype(expert, "BF16"));
        // A bf16 value of this size has few enough bits for f16.
        device.load(LAYER, 1, toDtype(roundedToF16(expert), "F16"));
        const rows = testValues(2 * 64, 3);
        const slots = Uint32Array.of(0, 1);
        const weights = Float32Array.of(1, 1);
        const expected = expectedSums(sizes, [expert, roundedToF16(expert)], rows, slots, weights);
        assertClose(await device.run(LAYER, rows, slots, weights), expected, 2e-5);
      }),
    );

    it(
      "refuses what does not fit, naming it, and goes on",
      withDevice(sizes, "f32", async (device) => {
        device.allocate(LAYER, ["f32", "f32"]);
        const expert = testExpert(sizes, 1);
        device.load(LAYER, 0, expert);
        const row = testValues(64, 1);
        const one = Float32Array.of(1);
        const run = (rows: Float32Array, slots: Uint32Array, weights: Float32Array) =>
          device.run(LAYER, rows, slots, weights);
        await assert.rejects(run(row, Uint32Array.of(1), one), /layer 3 slot 1/);
        await assert.rejects(run(row, Uint32Array.of(2), one), /layer 3 slot 2/);
        await assert.rejects(run(row.slice(1), Uint32Array.of(0), one), RangeError);
        await assert.rejects(run(row, Uint32Array.of(0), Float32Array.of(1, 1)), RangeError);
        await assert.rejects(device.run(LAYER + 1, row, Uint32Array.of(0), one), /layer 4/);
        const tooMany = device.maxRows + 1;
        await assert.rejects(
          run(
            new Float32Array(tooMany * 64),
            new Uint32Array(tooMany).fill(NO_SLOT),
            new Float32Array(tooMany),
          ),
          new RegExp(`${tooMany}.*${device.maxRows}`),
        );
        assert.throws(() => device.load(LAYER, 2, expert), /slot 2/);
        const transposed = { ...expert, down: { ...expert.down, shape: [40, 64] } };
        assert.throws(() => device.load(LAYER, 1, transposed), /down.*40, 64.*64, 40/);
        const slots = Uint32Array.of(0);
        const sums = await run(row, slots, one);
        assertClose(sums, expectedSums(sizes, [expert], row, slots, one), 2e-5);
      }),
    );

    it(
      "refuses a weight that overflows f16, naming value and limit",
      withDevice(sizes, "f16", (device) => {
        device.allocate(LAYER, ["f16"]);
        const expert = testExpert(sizes, 1);
        f32FromBytes(expert.up.bytes)[17] = -70000;
        assert.throws(() => device.load(LAYER, 0, expert), {
          name: "WeightOverflowError",
          message: /up.*70000.*65504/,
        });
      }),
    );

    it(
      "refuses a weight that is not finite, in f32 too",
      withDevice(sizes, "f32", (device) => {
        device.allocate(LAYER, ["f32"]);
        const expert = testExpert(sizes, 1);
        f32FromBytes(expert.down.bytes)[3] = Number.NaN;
        assert.throws(() => device.load(LAYER, 0, expert), {
          name: "WeightOverflowError",
          message: /down.*NaN/,
        });
      }),
    );
  });
}
