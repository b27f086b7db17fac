import { after } from "node:test";

import { openGpu } from "../../../core/gpu/device.ts";
import { createGpuExpertDevice } from "../../../core/gpu/expert-device.ts";
import { expertDeviceContract } from "../../support/expert-device-contract.ts";

const gpu = await openGpu();
after(() => gpu.close());

expertDeviceContract("the GPU's device", (sizes, formats) =>
  createGpuExpertDevice(gpu, sizes, formats),
);
