import assert from "node:assert/strict";
import { after, test } from "node:test";

import { DeviceTimeoutError, inTime } from "../../../core/gpu/deadline.ts";
import { openGpu } from "../../../core/gpu/device.ts";
import { largestPart } from "../../../core/gpu/expert-banks.ts";
import { createGpuExpertDevice } from "../../../core/gpu/expert-device.ts";
import { plainExpertKernels } from "../../../core/gpu/expert-kernels.ts";
import { KernelError } from "../../../core/gpu/kernel.ts";
import { SyntheticExperts } from "../../../core/gpu/synthetic-experts.ts";
import { NO_SLOT, OutOfDeviceMemoryError } from "../../../core/expert-device.ts";
import { countBuffers } from "../../support/counted-buffers.ts";
import { SMALL_EXPERTS as SIZES } from "../../support/gpu-fixture.ts";
import { testExpert, testValues } from "../../../bench/rig/expert-reference.ts";

const gpu = await openGpu();
after(() => gpu.close());

test("experts to measure on that do not fit leave nothing allocated", async () => {
  const bytes = countBuffers(gpu);
  const numSlots = 1 + Math.ceil(gpu.maxBindingBytes / largestPart(SIZES, "f16"));
  const options = { sizes: SIZES, numSlots, tokens: 1, topK: 1, batches: 1 };
  await assert.rejects(
    SyntheticExperts.create(gpu, { ...options, format: "f16" }),
    OutOfDeviceMemoryError,
  );
  assert.equal(bytes(), 0);
});

test("an expert device whose kernels do not compile leaves nothing allocated", async () => {
  const bytes = countBuffers(gpu);
  const plain = plainExpertKernels(SIZES);
  const kernels = {
    ...plain,
    regimes: plain.regimes.map((regime) => ({
      group: regime.group,
      limit: regime.limit,
      bank: (format: Parameters<typeof regime.bank>[0]) => {
        const { gateUp, down } = regime.bank(format);
        return { gateUp, down: { ...down, wgsl: `${down.wgsl}\nno WGSL` } };
      },
    })),
  };
  await assert.rejects(createGpuExpertDevice(gpu, SIZES, ["f16"], { kernels }), KernelError);
  assert.equal(bytes(), 0);
});

test("slots that the driver has no memory for are refused, and the present ones stay", async () => {
  const lone = await openGpu();
  const device = await createGpuExpertDevice(lone, SIZES, ["f32"]);
  device.allocate(0, ["f32"]);
  device.load(0, 0, testExpert(SIZES, 1));
  const run = () => device.run(0, testValues(64, 2), Uint32Array.of(0), Float32Array.of(1));
  const before = await run();
  const held = countBuffers(lone);
  // The driver of this machine has memory for all that a test can ask: it is made to say otherwise once.
  const pop = lone.device.popErrorScope.bind(lone.device);
  let refusals = 1;
  lone.device.popErrorScope = async () => {
    const error = await pop();
    return refusals-- > 0 ? { message: "no more" } : error;
  };
  await assert.rejects(device.rearrange(0, ["f32", "f32"], [0, NO_SLOT]), (error) => {
    assert.ok(error instanceof OutOfDeviceMemoryError);
    assert.match(error.message, /layer 0 with 2 experts.*needs \d+ bytes/);
    return true;
  });
  assert.equal(held(), 0, "nothing is left of them");
  assert.deepEqual(await run(), before);
  (await device.rearrange(0, ["f32", "f32"], [NO_SLOT, 0])).commit();
  const moved = device.run(0, testValues(64, 2), Uint32Array.of(1), Float32Array.of(1));
  assert.deepEqual(await moved, before);
  device.close();
  lone.close();
});

test("an answer that does not come in time is told by what was asked and how long", async () => {
  assert.equal(await inTime("a question", Promise.resolve(1)), 1);
  await assert.rejects(inTime("a question", new Promise(() => {}), 1), (error) => {
    assert.ok(error instanceof DeviceTimeoutError);
    assert.equal(error.message, "no answer to a question within 1 ms");
    return true;
  });
});
