/** Chooses what a shard computes on. */

import { createCpuExpertDevice } from "../core/cpu/expert-device.ts";
import type { ExpertConfig } from "./config.ts";
import type { ExpertDevice, ExpertSizes } from "../core/expert-device.ts";
import type { ExpertFormat } from "../core/expert-format.ts";
import { openDevice } from "../core/gpu/open-device.ts";
import type { Gpu } from "../core/gpu/device.ts";
import type { Logger } from "../core/platform/log.ts";

/** A device before it is known in which formats the cluster keeps experts. */
export interface ShardDevice {
  /** Description of what computes: the adapter, or "cpu". */
  readonly adapter: string;
  /** The adapter offers shader-f16, so that --weights auto may be f16. */
  readonly shaderF16: boolean;
  /** Memory that expert weights may take, bytes. */
  readonly memoryBytes: number;
  /** Settles with the reason when the device is lost; never otherwise. */
  readonly lost: Promise<string>;
  /** An ExpertDevice with slots of these formats; the caller closes it. */
  create(formats: readonly ExpertFormat[]): Promise<ExpertDevice>;
  close(): void;
}

/** The settings that choose a shard's device. */
export type ShardDeviceConfig = Pick<ExpertConfig, "device" | "adapter" | "memoryLimit">;

/**
 * Opens the device that the settings ask for; `auto` falls back to the CPU where there is no GPU, saying so.
 * Rejects with NoAdapterError.
 */
export async function openShardDevice(
  config: ShardDeviceConfig,
  sizes: ExpertSizes,
  logger: Logger,
): Promise<ShardDevice> {
  const gpu = await openDevice(config.device, config.adapter, logger);
  return gpu === undefined
    ? cpuShardDevice(sizes, config.memoryLimit)
    : gpuShardDevice(gpu, sizes, config.memoryLimit);
}

/** WebGPU does not tell an adapter's memory: without a limit of the user's, what it takes in one buffer counts. */
function gpuShardDevice(gpu: Gpu, sizes: ExpertSizes, memoryLimit?: number): ShardDevice {
  return {
    adapter: gpu.adapter,
    shaderF16: gpu.shaderF16,
    memoryBytes: memoryLimit ?? gpu.device.limits.maxBufferSize,
    lost: gpu.lost,
    create: async (formats) => {
      const { createGpuExpertDevice } = await import("../core/gpu/expert-device.ts");
      return createGpuExpertDevice(gpu, sizes, formats);
    },
    close: () => gpu.close(),
  };
}

/** The CPU, with host memory as device memory; where it is asked, f32: unpacking f16 costs it time. */
function cpuShardDevice(sizes: ExpertSizes, memoryLimit?: number): ShardDevice {
  const memoryBytes = memoryLimit ?? Math.floor(process.availableMemory() / 2);
  return {
    adapter: "cpu",
    shaderF16: false,
    memoryBytes,
    lost: new Promise(() => {}),
    create: async () => createCpuExpertDevice({ ...sizes, memoryBytes }),
    close: () => {},
  };
}
