import { after } from "node:test";

import { SWIFTSHADER } from "../../../support/swiftshader.ts";

Object.assign(process.env, SWIFTSHADER);
const { openGpu } = await import("../../../../core/gpu/device.ts");
const { gpuRunnerFactory } = await import("../../../support/gpu-runner-factory.ts");
const { runnerSuite } = await import("../../../support/runner-suite.ts");

const gpu = await openGpu();
after(() => gpu.close());

await runnerSuite("SwiftShader", gpuRunnerFactory(gpu), ["chat"]);
