import { createCpuExpertDevice } from "../../../core/cpu/expert-device.ts";
import { allIn } from "../../../core/expert-format.ts";
import { createCpuRunner } from "../../../router-service/engine/cpu-runner.ts";
import { createLocalDeviceExperts } from "../../../router-service/engine/local-experts.ts";
import { runnerSuite } from "../../support/runner-suite.ts";

await runnerSuite(
  "the CPU",
  async (checkpoint, limits) => {
    const device = createCpuExpertDevice(checkpoint.config);
    const runExperts = await createLocalDeviceExperts(device, checkpoint, allIn("f32"));
    return createCpuRunner({ checkpoint, weights: "f32", wire: "f32", limits, runExperts });
  },
  ["one_token"],
);
