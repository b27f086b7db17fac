import { after } from "node:test";

import { openGpu } from "../../../core/gpu/device.ts";
import { createGpuRunner } from "../../../router-service/engine/gpu/gpu-runner.ts";
import { goldenSuite } from "../../support/golden-suite.ts";
import { FAMILY_GOLDENS } from "../../support/goldens.ts";
import { onTwoShards } from "../../support/two-shards.ts";

const gpu = await openGpu();
after(() => gpu.close());

const onGpu = onTwoShards("webgpu", (runExperts, checkpoint, limits) =>
  createGpuRunner(gpu, {
    checkpoint,
    weights: "f32",
    wire: "f32",
    limits,
    experts: { kind: "remote", runExperts, microBatches: "auto" },
  }),
);

/** Variants whose routing or attention no family's golden has. */
const VARIANTS = ["deepseek_v2_group", "mixtral_window", "qwen2_moe_mixed"].map(
  (name) => `test/goldens/variants/${name}`,
);

for (const directory of [...FAMILY_GOLDENS, ...VARIANTS]) {
  await goldenSuite("a router's GPU with two GPU shards", directory, onGpu);
}
