/** Chooses what a shard computes on. */

import { createCpuExpertDevice } from "../core/cpu/expert-device.ts";
import type { ExpertConfig } from "./config.ts";
import type { ExpertDevice, ExpertSizes, WeightsDtype } from "../core/expert-device.ts";

/** A device before it is known in which dtype the cluster keeps weights. */
export interface ShardDevice {
  /** Description of what computes: the adapter, or "cpu". */
  readonly adapter: string;
  /** The adapter offers shader-f16, so that --weights auto may be f16. */
  readonly shaderF16: boolean;
  /** The device can keep weights in f16 when told to. */
  readonly canHoldF16: boolean;
  /** Memory that expert weights may take, bytes. */
  readonly memoryBytes: number;
  /** Settles with the reason when the device is lost; never otherwise. */
  readonly lost: Promise<string>;
  /** An ExpertDevice that keeps weights in this dtype; the caller closes it. */
  create(weights: WeightsDtype): Promise<ExpertDevice>;
  close(): void;
}

/** The settings that choose a shard's device. */
export type ShardDeviceConfig = Pick<ExpertConfig, "device" | "adapter" | "memoryLimit">;

/** Opens the device that the settings ask for. Rejects where there is none. */
export async function openShardDevice(
  config: ShardDeviceConfig,
  sizes: ExpertSizes,
): Promise<ShardDevice> {
  if (config.device === "webgpu")
    throw new Error("--device webgpu: the shard has no GPU device yet");
  return cpuShardDevice(sizes, config.memoryLimit);
}

/** The CPU, with host memory as device memory; it holds f16-rounded weights only where asked to, as that gains nothing. */
export function cpuShardDevice(sizes: ExpertSizes, memoryLimit?: number): ShardDevice {
  const memoryBytes = memoryLimit ?? Math.floor(process.availableMemory() / 2);
  return {
    adapter: "cpu",
    shaderF16: false,
    canHoldF16: true,
    memoryBytes,
    lost: new Promise(() => {}),
    create: async (weights) => createCpuExpertDevice({ ...sizes, memoryBytes }, weights),
    close: () => {},
  };
}
