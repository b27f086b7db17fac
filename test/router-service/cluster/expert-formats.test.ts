import assert from "node:assert/strict";
import { cp, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";

import { formatFromWire } from "../../../core/format-message.ts";
import { formatsOf } from "../../../core/expert-formats.ts";
import { openCheckpoint } from "../../../core/model/checkpoint/checkpoint.ts";
import { moeLayers } from "../../../core/model/config.ts";
import { readExpert } from "../../../core/model/checkpoint/weights.ts";
import { plainFloats } from "../../../core/packing/mxfp4-matrix.ts";
import { bytesOf, toF32 } from "../../../core/tensor.ts";
import { ShardHello } from "../../../proto/gen/switchyard/v1/expert.ts";
import { planCluster } from "../../../router-service/cluster/planning/first-placement.ts";
import { shardPlacement } from "../../../router-service/cluster/shards/shard-placement.ts";
import { TINY_MODEL } from "../../../bench/rig/cluster.ts";
import {
  asFormatKeeps,
  assertClose,
  expectedSums,
  mapTensors,
  testRun,
} from "../../../bench/rig/expert-reference.ts";
import { hostStep, hostValues } from "../../support/run-experts-contract.ts";
import { connectTestCluster, startTestShard } from "../../support/shards.ts";
import { temporaryDir } from "../../core/model/checkpoint/safetensors-writer.ts";

test("a cluster keeps experts of an MXFP4 checkpoint in MXFP4, unless a member asks for another format", async (t) => {
  const checkpoint = await openCheckpoint(join(import.meta.dirname, "../../goldens/gpt_oss"));
  t.after(() => checkpoint.close());
  const { config, storedExperts } = checkpoint;
  // Room for half of the experts in MXFP4: codes, scales padded to four a row, biases in f32.
  const halfInMxfp4 = config.numLayers * 4 * (3 * 64 * (32 + 4) + 4 * 3 * 64);
  const hellos = (experts: string, memoryBytes: number) =>
    [0, 1].map((rank) =>
      ShardHello.fromPartial({ rank, weights: "auto", shaderF16: true, experts, memoryBytes }),
    );
  const router = { weights: "auto", shaderF16: true, experts: "auto", config } as const;
  const plan = planCluster({ ...router, storedExperts }, hellos("auto", halfInMxfp4));
  assert.equal(plan.experts, "mxfp4");
  assert.equal(plan.weights, "f16");
  for (const rank of [0, 1]) {
    const placement = shardPlacement(plan, rank, undefined, 1);
    assert.equal(formatFromWire(placement.expertFormat), "mxfp4");
    assert.equal(placement.layers[0].experts.length, 4);
  }
  const asked = planCluster({ ...router, storedExperts }, hellos("f16", 2 ** 30));
  assert.equal(asked.experts, "f16");
  const floats = planCluster({ ...router, storedExperts: undefined }, hellos("auto", 2 ** 30));
  assert.equal(floats.experts, "f16");
});

test("two shards hold each expert in the format that flag and overlay name, and sum accordingly", async (t) => {
  const model = await temporaryDir(t);
  await cp(TINY_MODEL, model, { recursive: true });
  const overlay = { expertsBits: { 1: 16, 2: { 0: 8, 11: 32, 7: "mxfp4" } } };
  await writeFile(join(model, "switchyard.json"), JSON.stringify(overlay));
  const shards = await Promise.all([0, 1].map((rank) => startTestShard({ rank, model })));
  const cluster = await connectTestCluster(
    shards.map(({ address }) => address),
    { model, experts: "int4-g64" },
  );
  const checkpoint = await openCheckpoint(model);
  t.after(async () => {
    await cluster.close();
    await Promise.all(shards.map((shard) => shard.close()));
    await checkpoint.close();
  });
  await cluster.ready();

  const { config } = checkpoint;
  const formatOf = formatsOf(checkpoint.overlay, "int4-g64");
  assert.deepEqual(
    [formatOf(0, 0), formatOf(1, 0), formatOf(2, 0), formatOf(2, 1)],
    ["int4-g64", "f16", "int8", "int4-g64"],
  );
  for (const layer of moeLayers(config)) {
    const experts = await Promise.all(
      Array.from({ length: config.numExperts }, async (_, id) => {
        const expert = mapTensors(await readExpert(checkpoint, layer, id), (tensor) => ({
          shape: tensor.shape,
          dtype: "F32",
          bytes: bytesOf(toF32(plainFloats(tensor))),
        }));
        return asFormatKeeps(expert, config, formatOf(layer, id));
      }),
    );
    const { rows, slots: ids, weights } = testRun(config.hiddenSize, 9, 4, config.numExperts);
    for (const [i, id] of ids.entries()) if (id === 0xffffffff) ids[i] = i % config.numExperts;
    const step = hostStep(rows, { ids, weights, topK: 4 }, new AbortController().signal);
    const sums = hostValues(await cluster.runExperts(layer, step.hiddenStates, step.routing));
    assertClose(await sums, expectedSums(config, experts, rows, ids, weights), 1e-5);
  }
});
