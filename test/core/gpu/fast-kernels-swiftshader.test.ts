import { after } from "node:test";

import { SWIFTSHADER } from "../../support/swiftshader.ts";

Object.assign(process.env, SWIFTSHADER);
const { openGpu } = await import("../../../core/gpu/device.ts");
const { fastKernelCases } = await import("../../support/fast-kernel-cases.ts");

const gpu = await openGpu();
after(() => gpu.close());
fastKernelCases(gpu, ["int4-g64"]);
