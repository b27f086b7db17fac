import type { ExpertSizes, WeightsDtype } from "../../core/expert-device.ts";
import { allIn, type ExpertFormat } from "../../core/expert-format.ts";
import type { Gpu } from "../../core/gpu/device.ts";
import type { ExpertKernels } from "../../core/gpu/expert-kernels.ts";
import type { ProductChoice } from "../../core/gpu/products.ts";
import type { AttentionKernels } from "../../router-service/engine/gpu/gpu-attention.ts";
import { createGpuRunner } from "../../router-service/engine/gpu/gpu-runner.ts";
import { createLocalGpuExperts } from "../../router-service/engine/gpu/local-gpu-experts.ts";
import type { ModelRunner } from "../../router-service/engine/model-runner.ts";
import type { WireSetting } from "../../core/wire-rows.ts";
import type { RunnerFactory } from "./golden-suite.ts";

/** How runners keep, send and multiply. */
export interface GpuRunnerSettings {
  readonly weights?: WeightsDtype;
  readonly wire?: WireSetting;
  readonly experts?: ExpertFormat;
  /** The kernels that experts are computed with; default: the plain ones. */
  readonly kernels?: (sizes: ExpertSizes) => ExpertKernels;
  /** Absent: as is good for the adapter. */
  readonly products?: ProductChoice;
  /** Absent: as is good for the adapter. */
  readonly attention?: AttentionKernels;
}

/** Runners on an open device with local experts, these as other weights; f32 unless told otherwise. */
export function gpuRunnerFactory(
  gpu: Gpu,
  {
    weights = "f32",
    wire = "f32",
    experts = weights,
    kernels,
    products,
    attention,
  }: GpuRunnerSettings = {},
): (...of: Parameters<RunnerFactory>) => Promise<ModelRunner> {
  return (checkpoint, limits) =>
    createGpuRunner(gpu, {
      checkpoint,
      weights,
      wire,
      limits,
      products,
      attention,
      experts: {
        kind: "local",
        create: (buffers) =>
          createLocalGpuExperts(
            gpu,
            checkpoint,
            allIn(experts),
            buffers,
            undefined,
            kernels && (async () => kernels(checkpoint.config)),
          ),
      },
    });
}
