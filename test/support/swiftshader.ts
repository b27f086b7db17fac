/** Chromium's software Vulkan: a second adapter on any machine, without shader-f16. */

import { existsSync } from "node:fs";

import { SWIFTSHADER_DRIVERS } from "../../deploy/system-packages.ts";

/** Environment that makes it a process's adapter; to be set before the process's first WebGPU instance. */
export const SWIFTSHADER = {
  VK_ICD_FILENAMES: SWIFTSHADER_DRIVERS.find((file) => existsSync(file)) ?? SWIFTSHADER_DRIVERS[0],
};
