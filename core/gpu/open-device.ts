/** `--device auto|webgpu|cpu`: which device a process computes on. */

import type { Logger } from "../platform/log.ts";
import type { Gpu } from "./device.ts";

/**
 * The GPU that the setting asks for; undefined where it asks for the CPU, or is `auto` and there is no GPU.
 * WebGPU is loaded only where it may be used. Rejects where `webgpu` is asked for and there is none.
 */
export async function openDevice(
  setting: "auto" | "webgpu" | "cpu",
  adapterName: string | undefined,
  logger: Logger,
): Promise<Gpu | undefined> {
  if (setting === "cpu") return undefined;
  try {
    const { openGpu } = await import("./device.ts");
    return await openGpu(adapterName);
  } catch (error) {
    if (setting === "webgpu") throw error;
    logger.warn({ reason: String(error) }, "no GPU: computing on the CPU");
    return undefined;
  }
}
