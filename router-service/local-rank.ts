/** What the router's own device offers to routed experts of its cluster. */

import { createCpuExpertDevice } from "../core/cpu/expert-device.ts";
import type { ExpertDevice } from "../core/expert-device.ts";
import { type ExpertFormat, formatsAmong } from "../core/expert-format.ts";
import { formatsOf } from "../core/expert-formats.ts";
import type { Gpu } from "../core/gpu/device.ts";
import type { Checkpoint } from "../core/model/checkpoint/checkpoint.ts";
import { moeLayers } from "../core/model/config.ts";
import { readExpert } from "../core/model/checkpoint/weights.ts";
import { cacheDirectory } from "../core/platform/config.ts";
import type { Logger } from "../core/platform/log.ts";
import type { LocalRankOptions } from "./cluster/local-rank.ts";
import type { RouterConfig } from "./config.ts";
import type { LocalMemory } from "./local-memory.ts";

/** What it is made from. */
export interface LocalRankSettings {
  readonly checkpoint: Checkpoint;
  readonly settings: Pick<RouterConfig, "tune">;
  readonly memory: Pick<LocalMemory, "isOffered" | "bytes">;
  /** Absent: the CPU. */
  readonly gpu: Gpu | undefined;
  readonly logger: Logger;
}

/** The local rank of a router whose own device has memory for routed experts; undefined where it has none. */
export function localRankOptions(options: LocalRankSettings): LocalRankOptions | undefined {
  const { checkpoint, memory, gpu, logger } = options;
  const { config, overlay } = checkpoint;
  if (!memory.isOffered) return undefined;
  return {
    adapter: gpu?.adapter ?? "cpu",
    shaderF16: gpu?.shaderF16 ?? false,
    memoryBytes: () => memory.bytes(),
    sizes: config,
    createDevice: (formats) =>
      gpu === undefined
        ? Promise.resolve(createCpuExpertDevice(config))
        : createOnGpu(options, gpu, formats),
    formats: (common) =>
      formatsAmong(formatsOf(overlay, common), moeLayers(config), config.numExperts),
    readExpert: (layer, expert) => readExpert(checkpoint, layer, expert),
    logger,
  };
}

async function createOnGpu(
  { checkpoint: { config }, settings, logger }: LocalRankSettings,
  gpu: Gpu,
  formats: readonly ExpertFormat[],
): Promise<ExpertDevice> {
  const { createGpuExpertDevice } = await import("../core/gpu/expert-device.ts");
  const { CheckedKernels } = await import("../core/gpu/checked-kernels.ts");
  const { tune } = settings;
  const checked = new CheckedKernels(gpu, config, { tune, directory: cacheDirectory(), logger });
  const kernels = await checked.for(formats);
  return createGpuExpertDevice(gpu, config, formats, { kernels, maxSlots: config.numExperts });
}
