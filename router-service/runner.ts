/** Chooses what the engine computes on: GPU or CPU, with its own experts or those of the shards. */

import { createCpuExpertDevice } from "../core/cpu/expert-device.ts";
import type { WeightsDtype } from "../core/expert-device.ts";
import { commonFormat, expertsSetting, formatsOf } from "../core/expert-formats.ts";
import type { Gpu } from "../core/gpu/device.ts";
import { decideWeights } from "../core/handshake.ts";
import type { Checkpoint } from "../core/model/checkpoint/checkpoint.ts";
import { cacheDirectory } from "../core/platform/config.ts";
import type { Logger } from "../core/platform/log.ts";
import { startProgress } from "../core/platform/progress.ts";
import type { Cluster } from "./cluster/cluster.ts";
import type { RouterConfig } from "./config.ts";
import type { ModelRunner } from "./engine/model-runner.ts";
import type { RunnerLimits } from "./engine/runner-limits.ts";

/** What the choice of a runner depends on. */
export interface RunnerOptions {
  readonly checkpoint: Checkpoint;
  readonly settings: Pick<
    RouterConfig,
    "weights" | "expertsBits" | "expertsGroup" | "wire" | "microBatches" | "tune"
  >;
  readonly limits: RunnerLimits;
  /** Absent: the CPU. */
  readonly gpu: Gpu | undefined;
  /** Absent: the router holds all experts itself. */
  readonly cluster: Cluster | undefined;
  /** Told the dtype of weights before any is loaded; what it throws ends the load. */
  readonly onWeights?: (weights: WeightsDtype) => void;
  readonly logger: Logger;
}

/** Loads the model in the cluster's dtype, once that is known. Rejects as loading and the cluster do. */
export async function createRunner(options: RunnerOptions): Promise<ModelRunner> {
  const { checkpoint, settings, limits, gpu, cluster, logger } = options;
  const shaderF16 = gpu?.shaderF16 ?? false;
  const weights: WeightsDtype =
    cluster === undefined
      ? decideWeights([{ weights: settings.weights, shaderF16 }])
      : await cluster.weights();
  options.onWeights?.(weights);
  const experts =
    cluster === undefined
      ? commonFormat(expertsSetting(settings), weights, checkpoint.storedExperts)
      : undefined;
  const formatOf = formatsOf(checkpoint.overlay, experts ?? weights);
  logger.info({ weights, experts, wire: settings.wire }, "loading weights");
  const onLayer = progressOf("router layers", logger);
  const common = { checkpoint, weights, wire: settings.wire, limits, onProgress: onLayer };

  if (gpu === undefined) {
    const { createCpuRunner } = await import("./engine/cpu/cpu-runner.ts");
    const { createLocalDeviceExperts } = await import("./engine/local-experts.ts");
    const runExperts =
      cluster?.runExperts ??
      (await createLocalDeviceExperts(
        createCpuExpertDevice(checkpoint.config),
        checkpoint,
        formatOf,
        progressOf("router experts", logger),
      ));
    return createCpuRunner({ ...common, runExperts });
  }

  const { createGpuRunner } = await import("./engine/gpu/gpu-runner.ts");
  const { createLocalGpuExperts } = await import("./engine/gpu/local-gpu-experts.ts");
  const { CheckedKernels } = await import("../core/gpu/checked-kernels.ts");
  const checked = new CheckedKernels(gpu, checkpoint.config, {
    tune: settings.tune,
    directory: cacheDirectory(),
    logger,
  });
  const { plainProducts, productsFor } = await import("../core/gpu/products.ts");
  return createGpuRunner(gpu, {
    ...common,
    onFirstStep: progressOf("router kernels, compiled in first steps", logger),
    products: settings.tune === "never" ? plainProducts : productsFor(gpu),
    experts:
      cluster === undefined
        ? {
            kind: "local",
            create: (buffers) =>
              createLocalGpuExperts(
                gpu,
                checkpoint,
                formatOf,
                buffers,
                progressOf("router experts", logger),
                (formats) => checked.for(formats),
              ),
          }
        : {
            kind: "remote",
            runExperts: cluster.runExperts,
            microBatches: settings.microBatches,
          },
  });
}

/** Shows a load whose total is known at its first step. */
function progressOf(label: string, logger: Logger): (done: number, total: number) => void {
  let progress: ReturnType<typeof startProgress> | undefined;
  return (done, total) => {
    progress ??= startProgress(label, total, logger);
    progress.update(done);
    if (done === total) progress.finish();
  };
}
