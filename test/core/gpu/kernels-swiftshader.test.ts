// A second adapter, without shader-f16: Chromium's software Vulkan, chosen before the first WebGPU instance.
process.env["VK_ICD_FILENAMES"] = "/usr/lib/chromium/vk_swiftshader_icd.json";
const { kernelSuite } = await import("../../support/kernel-suite.ts");

await kernelSuite("SwiftShader", /swiftshader/i);
