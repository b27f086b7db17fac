/** Makes the runners of the suite on a GPU. */

import type { Gpu } from "../../core/gpu/device.ts";
import { createGpuRunner } from "../../router-service/engine/gpu-runner.ts";
import { createLocalGpuExperts } from "../../router-service/engine/local-gpu-experts.ts";
import type { RunnerFactory } from "./runner-suite.ts";

/** Runners on an open device with local experts, f32 weights and an f32 wire. */
export function gpuRunnerFactory(gpu: Gpu): RunnerFactory {
  return (checkpoint, limits) =>
    createGpuRunner(gpu, {
      checkpoint,
      weights: "f32",
      wire: "f32",
      limits,
      experts: {
        kind: "local",
        create: (buffers) => createLocalGpuExperts(gpu, checkpoint, "f32", buffers),
      },
    });
}
