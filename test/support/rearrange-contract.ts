/** How every ExpertDevice changes a layer's slots while it serves: one suite for the CPU's and the GPU's. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";

import { SILU } from "../../core/cpu/activation.ts";
import { type ExpertDevice, type ExpertSizes, NO_SLOT } from "../../core/expert-device.ts";
import type { ExpertFormat } from "../../core/expert-format.ts";
import { expertBytes, packExpert } from "../../core/weights.ts";
import type { ExpertDeviceFactory } from "./expert-device-contract.ts";
import {
  assertClose,
  expectedSums,
  testExpert,
  testValues,
} from "../../bench/rig/expert-reference.ts";

const LAYER = 3;
const SIZES: ExpertSizes = {
  hiddenSize: 64,
  expertIntermediateSize: 40,
  activation: SILU,
  expertBias: true,
};
const FORMATS: readonly ExpertFormat[] = ["f32", "int4-g32"];
const OLD: readonly ExpertFormat[] = ["f32", "int4-g32", "f32", "int4-g32", "f32"];

/** Registers the suite. */
export function rearrangeContract(name: string, create: ExpertDeviceFactory): void {
  describe(`${name} whose slots change`, () => {
    const withDevice = async (body: (device: ExpertDevice) => Promise<void>) => {
      const device = await create(SIZES, FORMATS);
      try {
        device.allocate(LAYER, OLD);
        for (const slot of OLD.keys()) device.load(LAYER, slot, testExpert(SIZES, slot));
        await body(device);
      } finally {
        device.close();
      }
    };
    /** A row through one slot at a time. */
    const through = (device: ExpertDevice, slot: number): Promise<Float32Array> =>
      device.run(LAYER, testValues(64, 9), Uint32Array.of(slot), Float32Array.of(0.5));

    it("brings each expert to its new slot, bit by bit, and takes new ones into empty slots", async () => {
      await withDevice(async (device) => {
        const before: Float32Array[] = [];
        for (const slot of OLD.keys()) before.push(await through(device, slot));
        const changes: readonly (readonly [readonly ExpertFormat[], readonly number[]])[] = [
          // Grows and reorders.
          [
            ["int4-g32", "f32", "f32", "int4-g32", "f32", "f32"],
            [3, 4, NO_SLOT, 1, 0, 2],
          ],
          // Shrinks: now the old slots 3, 0.
          [
            ["int4-g32", "f32"],
            [0, 4],
          ],
          [
            ["f32", "f32", "int4-g32"],
            [1, NO_SLOT, 0],
          ],
        ];
        for (const [formats, from] of changes) {
          const slots = await device.rearrange(LAYER, formats, from);
          slots.commit();
          const bytes = formats.reduce((sum, format) => sum + expertBytes(SIZES, format), 0);
          assert.equal(device.residentBytes(), bytes);
        }
        assert.deepEqual(await through(device, 0), before[0]);
        assert.deepEqual(await through(device, 2), before[3]);
        await assert.rejects(through(device, 1), /layer 3 slot 1: no expert/);
        await assert.rejects(through(device, 3), /layer 3 slot 3/);
        const added = testExpert(SIZES, 77);
        device.load(LAYER, 1, added);
        const rows = testValues(5 * 64, 4);
        const weights = testValues(5, 5);
        const sums = await device.run(LAYER, rows, new Uint32Array(5).fill(1), weights);
        const expected = expectedSums(SIZES, [added], rows, new Uint32Array(5), weights);
        assertClose(sums, expected, 2e-5);
      });
    });

    it("runs by the old slots until they are put in force, and for good where they are not", async () => {
      await withDevice(async (device) => {
        const first = await through(device, 0);
        const third = await through(device, 2);
        const dropped = await device.rearrange(LAYER, ["f32"], [2]);
        assert.deepEqual(await through(device, 0), first);
        dropped.discard();
        assert.deepEqual(await through(device, 0), first);
        const slots = await device.rearrange(LAYER, ["f32"], [2]);
        const run = through(device, 0);
        assert.throws(() => slots.commit(), /layer 3: its slots can not change during a run/);
        assert.deepEqual(await run, first);
        const rival = await device.rearrange(LAYER, ["f32"], [4]);
        slots.commit();
        assert.deepEqual(await through(device, 0), third);
        assert.throws(() => rival.commit(), /layer 3: its slots have changed meanwhile/);
        rival.discard();
        assert.deepEqual(await through(device, 0), third);
      });
    });

    it("makes them ready a part at a time with runs in between, and the rest when they are put in force", async () => {
      await withDevice(async (device) => {
        const before: Float32Array[] = [];
        for (const slot of OLD.keys()) before.push(await through(device, slot));
        for (const partsAtMost of [5, 60, Number.POSITIVE_INFINITY]) {
          const slots = await device.rearrange(LAYER, [...OLD, "f32"], [0, 1, 2, 3, 4, NO_SLOT]);
          let parts = 0;
          for (const bytes of slots.prepareParts(1000)) {
            assert.ok(bytes > 0);
            if (++parts % 20 === 0) assert.deepEqual(await through(device, 2), before[2]);
            if (parts === partsAtMost) break;
          }
          await device.settled();
          slots.commit();
          for (const slot of OLD.keys()) {
            assert.deepEqual(await through(device, slot), before[slot]);
          }
          await assert.rejects(through(device, 5), /layer 3 slot 5: no expert/);
          (await device.rearrange(LAYER, OLD, [0, 1, 2, 3, 4])).commit();
        }
      });
    });

    it("begins a layer with empty slots", async () => {
      await withDevice(async (device) => {
        const slots = await device.rearrange(LAYER + 1, ["f32", "f32"], [NO_SLOT, NO_SLOT]);
        slots.commit();
        device.load(LAYER + 1, 1, testExpert(SIZES, 1));
        await device.run(LAYER + 1, testValues(64, 9), Uint32Array.of(1), Float32Array.of(1));
      });
    });

    it("refuses slots that do not fit by name; the present ones stay", async () => {
      await withDevice(async (device) => {
        const held = device.residentBytes();
        const first = await through(device, 0);
        await assert.rejects(device.rearrange(LAYER, ["f32"], [1]), /slot 0: in f32, slot 1.*int4/);
        await assert.rejects(device.rearrange(LAYER, ["f32"], [5]), /slot 5: the layer has 5/);
        await assert.rejects(device.rearrange(LAYER, ["f32"], []), /1 slots from 0/);
        await assert.rejects(device.rearrange(LAYER + 1, ["f32"], [0]), /layer 4 slot 0/);
        assert.equal(device.residentBytes(), held);
        assert.deepEqual(await through(device, 0), first);
      });
    });

    it("gives an expert back as it was packed, and takes it a part at a time", async () => {
      await withDevice(async (device) => {
        for (const [slot, format] of OLD.entries()) {
          const packed = packExpert("test", testExpert(SIZES, slot), SIZES, format);
          assert.deepEqual(await device.read(LAYER, slot), packed);
        }
        const slots = await device.rearrange(LAYER, [...OLD, "f32"], [0, 1, 2, 3, 4, NO_SLOT]);
        slots.commit();
        await assert.rejects(device.read(LAYER, 5), /layer 3 slot 5: no expert/);
        const packed = await device.read(LAYER, 2);
        const expected = await through(device, 2);
        let written = 0;
        for (const bytes of device.loadParts(LAYER, 5, packed, 1000)) {
          written += bytes;
          if (written < expertBytes(SIZES, "f32")) {
            await assert.rejects(through(device, 5), /layer 3 slot 5: no expert/);
          }
        }
        assert.equal(written, expertBytes(SIZES, "f32"));
        assert.deepEqual(await through(device, 5), expected);
        const wrong = device.loadParts.bind(device, LAYER, 1, packed, 1000);
        assert.throws(() => [...wrong()], /layer 3 slot 1: packed in f32, the slot is for int4/);
      });
    });
  });
}
