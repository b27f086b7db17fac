// A router whose own GPU holds half of the routed experts beside its attention; a shard has the others.
import { after } from "node:test";

import { openGpu } from "../../../core/gpu/device.ts";
import { moeLayers } from "../../../core/model/config.ts";
import { LOCAL_RANK } from "../../../core/placement/placement.ts";
import { createGpuRunner } from "../../../router-service/engine/gpu/gpu-runner.ts";
import { localRankOptions } from "../../../router-service/local-rank.ts";
import { goldenSuite, type RunnerFactory } from "../../support/golden-suite.ts";
import { connectTestCluster, silentLogger, startTestShard } from "../../support/shards.ts";

const gpu = await openGpu();
after(() => gpu.close());

const onLocalRankAndShard: RunnerFactory = async (checkpoint, limits) => {
  const { dir: model, config } = checkpoint;
  const shard = await startTestShard({ model, device: "webgpu", weights: "f32" });
  const settings = { localExperts: 2 ** 24, tune: "never" } as const;
  const cluster = await connectTestCluster([shard.address], {
    model,
    plansFirst: false,
    local: localRankOptions({ checkpoint, settings, gpu, logger: silentLogger }),
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
