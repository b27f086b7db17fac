import { createCpuExpertDevice } from "../../core/cpu/expert-device.ts";
import { allIn, type ExpertFormat } from "../../core/expert-format.ts";
import type { Checkpoint } from "../../core/model/checkpoint/checkpoint.ts";
import { createCpuRunner } from "../../router-service/engine/cpu/cpu-runner.ts";
import { createLocalDeviceExperts } from "../../router-service/engine/local-experts.ts";
import type { ModelRunner } from "../../router-service/engine/model-runner.ts";
import type { RunnerLimits } from "../../router-service/engine/runner-limits.ts";

/** A runner in plain loops with experts in plain loops, in f32; experts as told. */
export async function createCpuTestRunner(
  checkpoint: Checkpoint,
  limits: RunnerLimits,
  experts: ExpertFormat = "f32",
): Promise<ModelRunner> {
  const device = createCpuExpertDevice(checkpoint.config);
  const runExperts = await createLocalDeviceExperts(device, checkpoint, allIn(experts));
  return createCpuRunner({ checkpoint, weights: "f32", wire: "f32", limits, runExperts });
}
