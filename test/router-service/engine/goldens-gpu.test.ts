import { after } from "node:test";

// Compiling takes longer than running tiny models: four lanes at a time instead of eight, and no optimisation.
Object.assign(process.env, { LP_NATIVE_VECTOR_WIDTH: "128", GALLIVM_PERF: "nopt" });
const { openGpu } = await import("../../../core/gpu/device.ts");
const { goldenSuite } = await import("../../support/golden-suite.ts");
const { FAMILY_GOLDENS } = await import("../../support/goldens.ts");
const { gpuRunnerFactory } = await import("../../support/gpu-runner-factory.ts");

const gpu = await openGpu();
after(() => gpu.close());

/** Variants that take other kernels than their families; those that are only stored otherwise run on the CPU. */
const VARIANTS = ["deepseek_v2_group", "mixtral_window", "olmoe_clip", "qwen2_moe_mixed"].map(
  (name) => `test/goldens/variants/${name}`,
);

for (const directory of [...FAMILY_GOLDENS, ...VARIANTS]) {
  // Experts with biases and another activation than silu do not run on a GPU yet.
  if (directory.includes("gpt_oss")) continue;
  await goldenSuite("the GPU", directory, gpuRunnerFactory(gpu));
}
