import assert from "node:assert/strict";
import { after, test } from "node:test";

import { openGpu } from "../../../core/gpu/device.ts";
import { openCheckpoint } from "../../../core/model/checkpoint.ts";
import { createGpuRunner } from "../../../router-service/engine/gpu-runner.ts";
import { TINY_MODEL } from "../../support/cluster.ts";
import { createdDuring } from "../../support/created-objects.ts";
import type { RunnerFactory } from "../../support/golden-suite.ts";
import { decodeSteps, runnerSuite } from "../../support/runner-suite.ts";
import { connectTestCluster, startTestShard } from "../../support/shards.ts";

const gpu = await openGpu();
const shards = await Promise.all(
  [0, 1].map((rank) => startTestShard({ rank, device: "webgpu", weights: "f32" })),
);
const cluster = await connectTestCluster(shards.map(({ address }) => address));
await cluster.ready();
after(async () => {
  await cluster.close();
  await Promise.all(shards.map((shard) => shard.close()));
  gpu.close();
});

const withShards =
  (microBatches: "1" | "2"): RunnerFactory =>
  (checkpoint, limits) =>
    createGpuRunner(gpu, {
      checkpoint,
      weights: "f32",
      wire: "f32",
      limits,
      experts: { kind: "remote", runExperts: cluster.runExperts, microBatches },
    });

await runnerSuite("a router's GPU with two shards", withShards("1"), []);
await runnerSuite("a router's GPU with two shards and two micro-batches", withShards("2"), []);

test("100 decode steps over two shards create nothing on any device but command encoders", async () => {
  const checkpoint = await openCheckpoint(TINY_MODEL);
  const limits = {
    maxTokens: 16,
    maxSequences: 4,
    maxSamples: 16,
    maxModelLen: 256,
    numBlocks: 32,
  };
  const runner = await withShards("2")(checkpoint, limits);
  const created = await createdDuring(gpu.device, () => decodeSteps(runner, 100));
  assert.deepEqual(new Set(created), new Set(["createCommandEncoder"]));
  await runner.close();
  await checkpoint.close();
});
