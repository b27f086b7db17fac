/** Chooses what a shard computes on. */

import { createCpuExpertDevice } from "../core/cpu/expert-device.ts";
import type { ExpertConfig } from "./config.ts";
import type { ExpertDevice } from "../core/expert-device.ts";
import type { ExpertFormat } from "../core/expert-format.ts";
import { openDevice } from "../core/gpu/open-device.ts";
import type { CheckedKernels } from "../core/gpu/checked-kernels.ts";
import type { ModelConfig } from "../core/model/config.ts";
import type { Gpu } from "../core/gpu/device.ts";
import { cacheDirectory } from "../core/platform/config.ts";
import type { Logger } from "../core/platform/log.ts";

/** A device before it is known in which formats the cluster keeps experts. */
export interface ShardDevice {
  /** Description of what computes: the adapter, or "cpu". */
  readonly adapter: string;
  /** The adapter offers shader-f16, so that --weights auto may be f16. */
  readonly shaderF16: boolean;
  /** Memory that expert weights may take, bytes. */
  readonly memoryBytes: number;
  /** A limit was set, and a layer whose slots change takes memory for both for a moment. */
  readonly holdsTwice: boolean;
  /** Takes experts in any format without being made for it. */
  readonly anyFormat: boolean;
  /** Largest binding of the adapter, bytes; Infinity on the CPU. */
  readonly bindingBytes: number;
  /** Settles with the reason when the device is lost; never otherwise. */
  readonly lost: Promise<string>;
  /** The largest error of the kernels checked so far, as core/gpu/conformance.ts counts it; 0 where none was, or on the CPU. */
  tolerance(): number;
  /** Checks every kernel for these formats against the plain loops. Rejects with ConformanceError, KernelError. */
  check(formats: readonly ExpertFormat[]): Promise<void>;
  /** An ExpertDevice with slots of these formats, checked first where they are not yet; the caller closes it. */
  create(formats: readonly ExpertFormat[]): Promise<ExpertDevice>;
  close(): void;
}

/** The settings that choose a shard's device. */
export type ShardDeviceConfig = Pick<ExpertConfig, "device" | "adapter" | "memoryLimit"> & {
  readonly tune?: ExpertConfig["tune"];
};

/**
 * Opens the device that the settings ask for; `auto` falls back to the CPU where there is no GPU, saying so.
 * Rejects with NoAdapterError.
 */
export async function openShardDevice(
  config: ShardDeviceConfig,
  model: ModelConfig,
  logger: Logger,
): Promise<ShardDevice> {
  const gpu = await openDevice(config.device, config.adapter, logger);
  return gpu === undefined
    ? cpuShardDevice(model, config.memoryLimit)
    : gpuShardDevice(gpu, model, config, logger);
}

/** WebGPU does not tell an adapter's memory: without a limit of the user's, what it takes in one buffer counts. */
function gpuShardDevice(
  gpu: Gpu,
  model: ModelConfig,
  { memoryLimit, tune = "auto" }: ShardDeviceConfig,
  logger: Logger,
): ShardDevice {
  let checked: CheckedKernels | undefined;
  const kernelsFor = async (formats: readonly ExpertFormat[]) => {
    const { CheckedKernels } = await import("../core/gpu/checked-kernels.ts");
    checked ??= new CheckedKernels(gpu, model, { tune, directory: cacheDirectory(), logger });
    return checked.for(formats);
  };
  return {
    adapter: gpu.adapter,
    shaderF16: gpu.shaderF16,
    memoryBytes: memoryLimit ?? gpu.device.limits.maxBufferSize,
    holdsTwice: memoryLimit !== undefined,
    anyFormat: false,
    bindingBytes: gpu.maxBindingBytes,
    lost: gpu.lost,
    tolerance: () => checked?.tolerance ?? 0,
    check: async (formats) => {
      await kernelsFor(formats);
    },
    create: async (formats) => {
      const { createGpuExpertDevice } = await import("../core/gpu/expert-device.ts");
      return createGpuExpertDevice(gpu, model, formats, {
        kernels: await kernelsFor(formats),
        maxSlots: model.numExperts,
      });
    },
    close: () => gpu.close(),
  };
}

/** The CPU, with host memory as device memory; where it is asked, f32: unpacking f16 costs it time. */
function cpuShardDevice(model: ModelConfig, memoryLimit?: number): ShardDevice {
  const memoryBytes = memoryLimit ?? Math.floor(process.availableMemory() / 2);
  return {
    adapter: "cpu",
    shaderF16: false,
    memoryBytes,
    // Experts are not copied there.
    holdsTwice: false,
    anyFormat: true,
    bindingBytes: Number.POSITIVE_INFINITY,
    lost: new Promise(() => {}),
    tolerance: () => 0,
    check: async () => {},
    create: async () => createCpuExpertDevice({ ...model, memoryBytes }),
    close: () => {},
  };
}
