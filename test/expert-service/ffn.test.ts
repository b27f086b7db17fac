import assert from "node:assert/strict";
import { describe, it } from "node:test";

import { SILU } from "../../core/cpu/activation.ts";
import { createCpuExpertDevice } from "../../core/cpu/expert-device.ts";
import { NO_SLOT } from "../../core/expert-device.ts";
import { DispatchRefusedError, NO_EXPERT } from "../../core/wire.ts";
import { runFfn, toSlots, type SlotRows } from "../../expert-service/ffn.ts";
import { testExpert, testValues } from "../../bench/rig/expert-reference.ts";

const SIZES = {
  hiddenSize: 16,
  expertIntermediateSize: 8,
  activation: SILU,
  expertBias: false,
};

function heldLayer(maxRows: number) {
  const device = createCpuExpertDevice(SIZES);
  device.allocate(4, ["f32", "f32", "f32"]);
  for (const slot of [0, 1, 2]) device.load(4, slot, testExpert(SIZES, slot));
  const limited = Object.assign(Object.create(device) as typeof device, {
    maxRows,
    run: (...call: Parameters<typeof device.run>) => {
      assert.ok(call[1].length <= maxRows * SIZES.hiddenSize, "no run exceeds maxRows");
      return device.run(...call);
    },
  });
  // Experts 1, 4 and 6 of eight.
  const slots = Uint32Array.of(NO_SLOT, 0, NO_SLOT, NO_SLOT, 1, NO_SLOT, 2, NO_SLOT);
  return { device: limited, slots };
}

const slotRows = (numRows: number, seed: number): SlotRows => ({
  rows: testValues(numRows * SIZES.hiddenSize, seed),
  slots: Uint32Array.from({ length: numRows * 2 }, (_, i) => (i % 4 === 3 ? NO_SLOT : i % 3)),
  topkWeights: testValues(numRows * 2, seed + 50),
});

describe("expert ids of a dispatch", () => {
  it("become the slots of the experts that are held", () => {
    const { rows, topkWeights } = slotRows(2, 1);
    const expertIds = Uint16Array.of(4, NO_EXPERT, 6, 1);
    const { slots } = toSlots(4, { rows, topkWeights, expertIds }, heldLayer(10));
    assert.deepEqual([...slots], [1, NO_SLOT, 2, 0]);
  });

  it("are refused by layer and id where one is not held, or beyond any expert", () => {
    const { rows, topkWeights } = slotRows(2, 1);
    for (const id of [2, 8, 65534]) {
      const expertIds = Uint16Array.of(4, NO_EXPERT, 6, id);
      assert.throws(
        () => toSlots(4, { rows, topkWeights, expertIds }, heldLayer(10)),
        (error) =>
          error instanceof DispatchRefusedError && error.message.includes(`layer 4 expert ${id}:`),
      );
    }
  });
});

describe("dispatches that run together", () => {
  it("each get the sums that they get alone, whatever a run of the device takes", async () => {
    const dispatches = [slotRows(3, 1), slotRows(1, 2), slotRows(9, 3)];
    for (const maxRows of [100, 13, 4, 1]) {
      const held = heldLayer(maxRows);
      const together = await runFfn(4, SIZES.hiddenSize, dispatches, held);
      for (const [index, dispatch] of dispatches.entries()) {
        const [alone] = await runFfn(4, SIZES.hiddenSize, [dispatch], heldLayer(100));
        assert.deepEqual([...together[index]], [...alone], `maxRows ${maxRows}`);
        assert.ok(alone.some((value) => value !== 0));
      }
    }
  });
});
