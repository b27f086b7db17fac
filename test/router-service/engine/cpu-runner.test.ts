import { createCpuExpertDevice } from "../../../core/cpu/expert-device.ts";
import { createCpuRunner } from "../../../router-service/engine/cpu-runner.ts";
import { createLocalDeviceExperts } from "../../../router-service/engine/local-experts.ts";
import { runnerSuite } from "../../support/runner-suite.ts";

await runnerSuite(
  "the CPU",
  async (checkpoint, limits) => {
    const device = createCpuExpertDevice(checkpoint.config, "f32");
    const runExperts = await createLocalDeviceExperts(device, checkpoint);
    return createCpuRunner({ checkpoint, weights: "f32", wire: "f32", limits, runExperts });
  },
  ["one_token"],
);
