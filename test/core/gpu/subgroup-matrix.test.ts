import assert from "node:assert/strict";
import { after, test } from "node:test";

import { EXPERT_FORMATS } from "../../../core/expert-format.ts";
import { openGpu } from "../../../core/gpu/device.ts";
import { compileKernel, type Kernel } from "../../../core/gpu/kernel.ts";
import type { StepSizes } from "../../../core/gpu/kernels/counts.ts";
import { subgroupMatrixDown } from "../../../core/gpu/kernels/subgroup-matrix-down.ts";
import { subgroupMatrixGateUp } from "../../../core/gpu/kernels/subgroup-matrix-gate-up.ts";
import {
  type SubgroupMatrixShape,
  subgroupMatrixShapes,
  subgroupMatrixThreads,
} from "../../../core/gpu/kernels/subgroup-matrix.ts";

// Dawn's null adapter offers every feature and validates kernels in full; it runs nothing.
const gpu = await openGpu(undefined, "null");
after(() => gpu.close());

const NVIDIA = { componentType: "f16", resultComponentType: "f32", M: 16, N: 16, K: 16 };
const APPLE = { componentType: "f16", resultComponentType: "f32", M: 8, N: 8, K: 8 };
const SIZES = {
  hiddenSize: 96,
  expertIntermediateSize: 80,
  activation: { kind: "clampedSwiglu", alpha: 1.702, limit: 7 },
  expertBias: true,
} as const;

/** What an adapter with these matrices offers, in subgroups of the size that the null adapter asks for. */
function offersWith(subgroupMatrix: typeof NVIDIA) {
  const subgroupSize = gpu.offers.maxSubgroupSize;
  return {
    ...gpu.offers,
    minSubgroupSize: subgroupSize,
    subgroupMatrix: [subgroupMatrix],
  };
}

/** Compiles a kernel; one of more invocations or workgroup memory than the null adapter has, as far as its source goes. */
async function assertValid(kernel: Kernel<StepSizes>, shape: SubgroupMatrixShape): Promise<void> {
  const { limits } = gpu.device;
  const fits =
    subgroupMatrixThreads(shape) <= limits.maxComputeInvocationsPerWorkgroup &&
    kernel.workgroupBytes! <= limits.maxComputeWorkgroupStorageSize;
  if (fits) {
    await compileKernel(gpu, kernel);
    return;
  }
  const module = gpu.device.createShaderModule({ code: kernel.wgsl });
  const { messages } = await module.getCompilationInfo();
  assert.deepEqual(
    messages.map(({ message }) => message),
    [],
    kernel.label,
  );
}

for (const config of [NVIDIA, APPLE]) {
  const shapes = subgroupMatrixShapes(offersWith(config), 1024);
  test(`every kernel of ${config.M}·${config.N}·${config.K} matrices is valid in every format`, async () => {
    assert.equal(shapes.length, 4);
    for (const shape of shapes) {
      await assertValid(subgroupMatrixGateUp(SIZES, "f16", shape), shape);
      await assertValid(subgroupMatrixDown(SIZES, "f16", shape), shape);
    }
    for (const format of EXPERT_FORMATS) {
      await assertValid(subgroupMatrixGateUp(SIZES, format, shapes[0]), shapes[0]);
      await assertValid(subgroupMatrixDown(SIZES, format, shapes[0]), shapes[0]);
    }
  });
}

test("no kernel is offered where subgroups come in several sizes, sums are f16, or there are no matrices", () => {
  const good = offersWith(NVIDIA);
  assert.equal(subgroupMatrixShapes(good, 1024).length, 4);
  assert.deepEqual(subgroupMatrixShapes({ ...good, minSubgroupSize: 8 }, 1024), []);
  assert.deepEqual(subgroupMatrixShapes({ ...good, subgroupMatrix: [] }, 1024), []);
  const inF16 = { ...NVIDIA, resultComponentType: "f16" };
  assert.deepEqual(subgroupMatrixShapes({ ...good, subgroupMatrix: [inF16] }, 1024), []);
});
