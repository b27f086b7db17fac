import assert from "node:assert/strict";
import { it } from "node:test";

import { createCpuExpertDevice } from "../../../core/cpu/expert-device.ts";
import { DeviceSlots } from "../../../core/residency/device-slots.ts";

it("a change that is given up ends after the slice at hand, and the layer stays as it was", async () => {
  const device = createCpuExpertDevice({
    hiddenSize: 4,
    expertIntermediateSize: 4,
    activation: { kind: "silu" },
    expertBias: false,
  });
  const stop = new AbortController();
  const rearrange = device.rearrange.bind(device);
  let slices = 0;
  let discarded = 0;
  // The CPU has nothing to make ready: as on a GPU, it is a slice at a time.
  device.rearrange = async (...wanted) => {
    const made = await rearrange(...wanted);
    return {
      *prepareParts() {
        for (; slices < 10; slices++) {
          if (slices === 2) stop.abort(new Error("given up"));
          yield 1;
        }
      },
      commit: () => made.commit(),
      discard: () => {
        discarded++;
        made.discard();
      },
    };
  };
  const slots = new DeviceSlots({
    device,
    numExperts: 4,
    between: async (task) => task(),
    gentle: () => true,
  });
  const wanted = (...experts: number[]) =>
    new Map([[0, experts.map((expert) => ({ expert, format: "f32" as const }))]]);
  await assert.rejects(slots.arrange(wanted(1, 2), stop.signal), /given up/);
  assert.deepEqual([slices, discarded, slots.empty()], [2, 1, []]);
  await slots.arrange(wanted(1, 2));
  assert.equal(slots.empty().length, 2);
});
