import { after } from "node:test";

import type { ExpertSizes } from "../../../../core/expert-device.ts";
import { openGpu } from "../../../../core/gpu/device.ts";
import { tunedKernels } from "../../../../core/gpu/expert-tuning.ts";
import { FAST_PRODUCTS } from "../../../support/fast-products.ts";
import { goldenSuite } from "../../../support/golden-suite.ts";
import { FAMILY_GOLDENS } from "../../../support/goldens.ts";
import { gpuRunnerFactory } from "../../../support/gpu-runner-factory.ts";

/** Variants that take other kernels than their families, or whose weights take another way to the GPU. */
const VARIANTS = [
  "deepseek_v2_group",
  "deepseek_v3_fp8",
  "gpt_oss_bf16",
  "mixtral_window",
  "olmoe_clip",
  "qwen2_moe_mixed",
].map((name) => `test/goldens/variants/${name}`);

const gpu = await openGpu();
after(() => gpu.close());

for (const directory of [...FAMILY_GOLDENS, ...VARIANTS]) {
  await goldenSuite("the GPU", directory, gpuRunnerFactory(gpu));
}

await goldenSuite(
  "the GPU with experts in MXFP4",
  "test/goldens/gpt_oss",
  gpuRunnerFactory(gpu, { weights: "f32", wire: "f32", experts: "mxfp4" }),
);

// As large matrices are where bindings take little: several slices of embedding, output head, projections and FFNs.
const small = { ...gpu, maxBindingBytes: 16384 };
for (const name of ["deepseek_v3", "variants/qwen2_moe_mixed"]) {
  await goldenSuite("a GPU with small bindings", `test/goldens/${name}`, gpuRunnerFactory(small));
}

for (const [name, products] of Object.entries(FAST_PRODUCTS)) {
  const create = gpuRunnerFactory(gpu, { products });
  await goldenSuite("a GPU with kernels for real ones", `test/goldens/${name}`, create);
}

// What a real GPU would choose: a workgroup per few outputs for few rows, tiles in workgroup memory for many.
const kernels = (sizes: ExpertSizes) =>
  tunedKernels(sizes, [
    {
      pairsPerSlot: 1,
      candidate: {
        kind: "matvec",
        rows: 1,
        shape: { threads: 64, columns: 4, reduce: gpu.offers.subgroups ? "subgroup" : "workgroup" },
      },
      seconds: 1,
    },
    {
      pairsPerSlot: 4,
      candidate: { kind: "gemm", shape: { threads: [8, 8], block: [4, 2], tile: "f32" } },
      seconds: 1,
    },
  ]);
for (const name of ["deepseek_v3", "gpt_oss", "qwen2_moe"]) {
  const create = gpuRunnerFactory(gpu, { kernels });
  await goldenSuite("a GPU with expert kernels for real ones", `test/goldens/${name}`, create);
}

for (const name of ["deepseek_v3", "gpt_oss", "qwen3_moe"]) {
  const create = gpuRunnerFactory(gpu, { attention: "hardware" });
  await goldenSuite("a GPU with attention for real ones", `test/goldens/${name}`, create);
}
