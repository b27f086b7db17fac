import assert from "node:assert/strict";
import { after, test } from "node:test";

import { openGpu } from "../../../core/gpu/device.ts";
import { compileKernel, type Kernel, KernelError } from "../../../core/gpu/kernel.ts";
import { attention } from "../../../core/gpu/kernels/attention.ts";
import { topCandidates } from "../../../core/gpu/kernels/top-candidates.ts";

const gpu = await openGpu();
after(() => gpu.close());

const grid = () => [1, 1, 1] as const;

/** Rejects as a KernelError with this message, and leaves the device as it was. */
async function assertRefused<Sizes>(kernel: Kernel<Sizes>, message: RegExp): Promise<void> {
  await assert.rejects(compileKernel(gpu, kernel), (error) => {
    assert.ok(error instanceof KernelError, String(error));
    assert.match(error.message, message);
    return true;
  });
  await compileKernel(gpu, topCandidates({ vocabSize: 8, rowStride: 8, maxCandidates: 4 }));
}

test("a kernel that does not compile is refused with line, column and source", async () => {
  const wgsl = "@compute @workgroup_size(1)\nfn main() { let x = missing; }";
  await assertRefused(
    { label: "broken", wgsl, grid },
    /kernel broken .*\n2:\d+ .*missing.*\n.*let x = missing/,
  );
});

test("a kernel without its entry point is refused by name", async () => {
  const wgsl = "@compute @workgroup_size(1)\nfn other() {}";
  await assertRefused({ label: "entry", wgsl, grid }, /kernel entry: /);
});

test("heads too wide for the adapter's workgroup memory are refused with both numbers", async () => {
  const limit = gpu.device.limits.maxComputeWorkgroupStorageSize;
  const kernel = attention({
    numHeads: 1,
    numKvHeads: 1,
    keyDim: limit,
    valueDim: limit,
    slotWidth: 2 * limit,
    valuesAt: limit,
    scale: 1,
    sinks: false,
    blockSize: 16,
    blocksPerSequence: 4,
    tokens: "one",
    lanes: 32,
  });
  await assertRefused(
    kernel,
    new RegExp(`needs ${kernel.workgroupBytes} bytes of workgroup memory, .* has ${limit}`),
  );
});
