import assert from "node:assert/strict";
import { after, test } from "node:test";

import { openGpu } from "../../../core/gpu/device.ts";
import { createGpuRunner } from "../../../router-service/engine/gpu/gpu-runner.ts";
import { createdDuring } from "../../support/created-objects.ts";
import type { RunnerFactory } from "../../support/golden-suite.ts";
import { decodeSteps, runnerSuite } from "../../support/runner-suite.ts";
import { readTinyGoldens } from "../../support/goldens.ts";
import { gpuRunnerFactory } from "../../support/gpu-runner-factory.ts";
import { openTiny, SMALL_LIMITS } from "../../support/tiny-checkpoint.ts";
import { batchOf, distance, NEVER } from "../../support/step-batch.ts";
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

test("rows in int8 give the same with two shards as with all experts on the router", async (t) => {
  const overInt8 = await connectTestCluster(
    shards.map(({ address }) => address),
    { wire: "int8" },
  );
  t.after(() => overInt8.close());
  await overInt8.ready();
  const checkpoint = await openTiny(t);
  const limits = { ...SMALL_LIMITS, maxTokens: 128, maxSamples: 128 };
  const remote = await createGpuRunner(gpu, {
    checkpoint,
    weights: "f32",
    wire: "int8",
    limits,
    experts: { kind: "remote", runExperts: overInt8.runExperts, microBatches: "2" },
  });
  const local = await gpuRunnerFactory(gpu, { weights: "f32", wire: "int8" })(checkpoint, limits);
  const exact = await gpuRunnerFactory(gpu)(checkpoint, limits);
  const [, , , { prompt }] = await readTinyGoldens();
  const step = batchOf([{ tokenIds: prompt, from: 0, blocks: [0, 1, 2, 3, 4] }]);
  const runs = await Promise.all(
    [remote, local, exact].map((runner) => runner.forward(step, NEVER)),
  );
  const [ofRemote, ofLocal, ofExact] = runs.map(({ samples }) =>
    samples.flatMap(({ logits }) => [...(logits ?? [])]),
  );
  assert.ok(distance(ofRemote, ofLocal) < 1e-4, `${distance(ofRemote, ofLocal)}`);
  const rounding = distance(ofLocal, ofExact);
  assert.ok(rounding > 1e-3 && rounding < 1, `int8 moves logits by ${rounding}`);
  for (const runner of [remote, local, exact]) runner.close();
});

test("100 decode steps over two shards create nothing on any device but command encoders", async (t) => {
  const checkpoint = await openTiny(t);
  const runner = await withShards("2")(checkpoint, SMALL_LIMITS);
  const created = await createdDuring(gpu.device, () => decodeSteps(runner, 100));
  assert.deepEqual(new Set(created), new Set(["createCommandEncoder"]));
  await runner.close();
});
