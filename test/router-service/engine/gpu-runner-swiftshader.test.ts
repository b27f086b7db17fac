import { after } from "node:test";

// A second adapter: Chromium's software Vulkan, chosen before the first WebGPU instance.
process.env["VK_ICD_FILENAMES"] = "/usr/lib/chromium/vk_swiftshader_icd.json";
const { openGpu } = await import("../../../core/gpu/device.ts");
const { gpuRunnerFactory } = await import("../../support/gpu-runner-factory.ts");
const { runnerSuite } = await import("../../support/runner-suite.ts");

const gpu = await openGpu();
after(() => gpu.close());

await runnerSuite("SwiftShader", gpuRunnerFactory(gpu), ["chat"]);
