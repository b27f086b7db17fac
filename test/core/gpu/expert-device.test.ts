import assert from "node:assert/strict";
import { after, test } from "node:test";

import { SILU } from "../../../core/cpu/activation.ts";
import { OutOfDeviceMemoryError } from "../../../core/expert-device.ts";
import type { ExpertFormat } from "../../../core/expert-format.ts";
import { openGpu } from "../../../core/gpu/device.ts";
import { planBanks } from "../../../core/gpu/expert-banks.ts";
import { plainExpertKernels } from "../../../core/gpu/expert-kernels.ts";
import { inputLoads } from "../../../core/gpu/kernels/shared-input.ts";
import { createGpuExpertDevice } from "../../../core/gpu/expert-device.ts";
import {
  expertDeviceContract,
  type ExpertDeviceFactory,
} from "../../support/expert-device-contract.ts";
import { expertFormatContract } from "../../support/expert-format-contract.ts";
import { rearrangeContract } from "../../support/rearrange-contract.ts";
import { assertClose, testExpert, testRun } from "../../../bench/rig/expert-reference.ts";

const gpu = await openGpu();
after(() => gpu.close());

const create: ExpertDeviceFactory = (sizes, formats) => createGpuExpertDevice(gpu, sizes, formats);

expertDeviceContract("the GPU's device", create);
rearrangeContract("the GPU's device", create);
// f32 is the other suite's; g64 differs from its neighbours by a constant.
expertFormatContract("the GPU's device", create, ["f16", "int8", "int4-g128", "int4-g32", "mxfp4"]);

const SIZES = {
  hiddenSize: 64,
  expertIntermediateSize: 40,
  activation: SILU,
  expertBias: false,
} as const;
/** Gate and up of one expert in f32. */
const PART_BYTES = 2 * 64 * 40 * 4;

test("experts in several banks give the sums, bit by bit, that they give in one", async () => {
  const oneBank = await createGpuExpertDevice(gpu, SIZES, ["f32"]);
  const banks = await createGpuExpertDevice(gpu, SIZES, ["f32"], { bankBytes: 3 * PART_BYTES - 1 });
  for (const device of [oneBank, banks]) {
    device.allocate(
      0,
      Array.from({ length: 7 }, () => "f32"),
    );
    for (let slot = 0; slot < 7; slot++) device.load(0, slot, testExpert(SIZES, slot));
  }
  assert.equal(banks.residentBytes(), oneBank.residentBytes());
  for (const [numRows, topK] of [
    [2, 4],
    [30, 3],
  ] as const) {
    const { rows, slots, weights } = testRun(64, numRows, topK, 7);
    assert.deepEqual(
      await banks.run(0, rows, slots, weights),
      await oneBank.run(0, rows, slots, weights),
    );
  }
  banks.close();
  oneBank.close();
});

test("kernels that load the input for themselves give the sums that those of this adapter give", async () => {
  assert.notEqual(inputLoads(gpu.offers), "own", "llvmpipe's kernels share loads in subgroups");
  const own = await createGpuExpertDevice(gpu, SIZES, ["f32", "int8"], {
    kernels: plainExpertKernels(SIZES),
  });
  const shared = await createGpuExpertDevice(gpu, SIZES, ["f32", "int8"]);
  const slots: ExpertFormat[] = ["f32", "int8", "f32", "int8"];
  for (const device of [own, shared]) {
    device.allocate(0, slots);
    for (const slot of slots.keys()) device.load(0, slot, testExpert(SIZES, slot));
  }
  for (const numRows of [1, 30]) {
    const run = testRun(64, numRows, 2, slots.length);
    const expected = await own.run(0, run.rows, run.slots, run.weights);
    const actual = await shared.run(0, run.rows, run.slots, run.weights);
    assertClose(actual, Float64Array.from(expected), 1e-6);
  }
  own.close();
  shared.close();
});

test("slots come into as few banks of each format as a buffer's limit allows, evenly", () => {
  const formats = ["f16", "f32", "f32", "f16", "f32", "f32", "f32"] as const;
  assert.deepEqual(planBanks(formats, SIZES, 4 * PART_BYTES), [
    { format: "f16", slots: [0, 3] },
    { format: "f32", slots: [1, 2, 4] },
    { format: "f32", slots: [5, 6] },
  ]);
});

test("an expert that no buffer can take is refused with its bytes, the limit and what fits", async () => {
  const mixtral = { ...SIZES, hiddenSize: 4096, expertIntermediateSize: 14336 };
  assert.throws(
    () => planBanks(["int8", "f16"], mixtral, 2 ** 27),
    new OutOfDeviceMemoryError(
      "the buffer of one expert's gate and up in f16, 2 × 14336 × 4096,",
      234881024,
      2 ** 27,
      "start with --experts-bits 8",
    ),
  );
  assert.throws(
    () => planBanks(["int8"], mixtral, 2 ** 26),
    /in int8, .* start with --experts-bits 4$/u,
  );
  assert.throws(() => planBanks(["int8"], mixtral, 2 ** 20), /no format of experts fits/);
  const device = await createGpuExpertDevice(gpu, SIZES, ["f32"], { bankBytes: PART_BYTES });
  assert.throws(() => device.allocate(0, ["f16"]), /a slot in f16, the device is for f32/);
  device.allocate(0, ["f32"]);
  device.close();
});

test("a layer with more slots than its pairs can be sorted by is refused by name", async () => {
  const device = await createGpuExpertDevice(gpu, SIZES, ["f32"], { maxSlots: 3 });
  const slots = Array.from({ length: 4 }, () => "f32" as const);
  assert.throws(() => device.allocate(5, slots), /layer 5: 4 experts on one GPU, at most 3/);
  device.close();
  const limit = gpu.device.limits.maxComputeWorkgroupStorageSize;
  await assert.rejects(
    createGpuExpertDevice(gpu, SIZES, ["f32"], { maxSlots: limit }),
    new RegExp(`needs ${8 * limit + 4} bytes of workgroup memory`),
  );
});
