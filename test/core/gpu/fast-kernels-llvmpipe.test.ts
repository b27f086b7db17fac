import { after } from "node:test";

import { openGpu } from "../../../core/gpu/device.ts";
import { fastKernelCases } from "../../support/fast-kernel-cases.ts";

const gpu = await openGpu();
after(() => gpu.close());
fastKernelCases(gpu, ["f16", "int8", "int4-g32", "mxfp4"]);
