import assert from "node:assert/strict";
import { cp, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";

import { formatsOf } from "../../../core/expert-formats.ts";
import { openCheckpoint } from "../../../core/model/checkpoint.ts";
import { moeLayers } from "../../../core/model/config.ts";
import { readExpert } from "../../../core/model/weights.ts";
import { bytesOf, toF32 } from "../../../core/tensor.ts";
import { TINY_MODEL } from "../../support/cluster.ts";
import {
  asFormatKeeps,
  assertClose,
  expectedSums,
  mapTensors,
  testRun,
} from "../../support/expert-reference.ts";
import { hostStep, hostValues } from "../../support/run-experts-contract.ts";
import { connectTestCluster, startTestShard } from "../../support/shards.ts";
import { temporaryDir } from "../../core/model/safetensors-writer.ts";

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
          bytes: bytesOf(toF32(tensor)),
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
