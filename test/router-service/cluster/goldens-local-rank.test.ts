// A router whose own GPU holds half of the routed experts beside its attention; a shard has the others.
import assert from "node:assert/strict";
import { after } from "node:test";

import { openGpu } from "../../../core/gpu/device.ts";
import { moeLayers } from "../../../core/model/config.ts";
import { LOCAL_RANK } from "../../../core/placement/placement.ts";
import { routerConfigSchema } from "../../../router-service/config.ts";
import { createGpuRunner } from "../../../router-service/engine/gpu/gpu-runner.ts";
import { createLocalMemory } from "../../../router-service/local-memory.ts";
import { localRankOptions } from "../../../router-service/local-rank.ts";
import { countBuffers } from "../../support/counted-buffers.ts";
import { goldenSuite, type RunnerFactory } from "../../support/golden-suite.ts";
import { connectTestCluster, silentLogger, startTestShard } from "../../support/shards.ts";

const gpu = await openGpu();
const allocated = countBuffers(gpu);
/** A little more than attention, half of the experts, and a layer of them once more take. */
const routerMemoryLimit = 13.5 * 2 ** 20;
after(() => gpu.close());

const onLocalRankAndShard: RunnerFactory = async (checkpoint, limits) => {
  const { dir: model, config } = checkpoint;
  const shard = await startTestShard({ model, device: "webgpu", weights: "f32" });
  const settings = routerConfigSchema.parse({ routerMemoryLimit, weights: "f32", tune: "never" });
  const logger = silentLogger;
  const memory = createLocalMemory({ checkpoint, settings, limits, gpu, isRemote: true, logger });
  const cluster = await connectTestCluster([shard.address], {
    model,
    plansFirst: false,
    local: localRankOptions({ checkpoint, settings, memory, gpu, logger }),
  });
  const replicas = Array.from({ length: config.numExperts }, (_, expert) => [
    { rank: expert % 2 === 0 ? LOCAL_RANK : 0, share: 1 },
  ]);
  const layers = new Map(moeLayers(config).map((layer) => [layer, replicas]));
  await cluster.adopt({ placement: { epoch: 1, layers }, weights: "f32", experts: "f32" });
  await cluster.ready();
  const { runExperts } = cluster;
  const runner = await createGpuRunner(gpu, {
    checkpoint,
    weights: "f32",
    wire: "f32",
    limits,
    experts: { kind: "remote", runExperts, microBatches: "auto" },
  });
  assert.ok(allocated() <= routerMemoryLimit, `${allocated()} bytes`);
  return {
    forward: (batch, context) => runner.forward(batch, context),
    close: async () => {
      runner.close();
      await cluster.close();
      await shard.close();
    },
  };
};

await goldenSuite("a router's GPU with experts", "test/goldens/qwen2_moe", onLocalRankAndShard);
