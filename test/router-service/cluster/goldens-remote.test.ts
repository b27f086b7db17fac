// The seam to remote experts, family by family: what differs on it are biases, activations and layers without experts.
import { createCpuRunner } from "../../../router-service/engine/cpu/cpu-runner.ts";
import { goldenSuite } from "../../support/golden-suite.ts";
import { onTwoShards } from "../../support/two-shards.ts";

const onCpu = onTwoShards("cpu", (runExperts, checkpoint, limits) =>
  createCpuRunner({ checkpoint, weights: "f32", wire: "f32", limits, runExperts }),
);

for (const name of ["deepseek_v3", "gpt_oss", "variants/qwen2_moe_mixed"]) {
  await goldenSuite("a CPU router with two CPU shards", `test/goldens/${name}`, onCpu);
}
