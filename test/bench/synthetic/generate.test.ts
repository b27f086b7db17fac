import assert from "node:assert/strict";
import { readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";

import { readSyntheticConfig, shippedConfigs } from "../../../bench/synthetic/command.ts";
import { withLayers, writeSynthetic } from "../../../bench/synthetic/generate.ts";
import { openCheckpoint } from "../../../core/model/checkpoint/checkpoint.ts";
import type { ModelConfig } from "../../../core/model/config.ts";
import { expectedTensors, familyOf } from "../../../core/model/families/families.ts";
import { parseModelConfig, readRawConfig } from "../../../core/model/load-config.ts";
import { numElements, toF32 } from "../../../core/tensor.ts";
import { temporaryDir } from "../../core/model/checkpoint/safetensors-writer.ts";
import { TINY_MODEL } from "../../../bench/rig/cluster.ts";

function parametersOf(config: ModelConfig): number {
  const tensors = Array.from(expectedTensors(config).values());
  return tensors.reduce((sum, { shape }) => sum + numElements(shape), 0);
}

async function synthesize(out: string, layers: number, seed = 0, maxShardBytes = 2 ** 30) {
  const raw = await readRawConfig(TINY_MODEL);
  const configFile = `${TINY_MODEL}/config.json`;
  return writeSynthetic({ raw, configFile, layers, out, seed, maxShardBytes });
}

test("a synthetic checkpoint opens as a published one, with random weights of usual size", async (t) => {
  const dir = await temporaryDir(t);
  const seen = await synthesize(dir, 5);
  const checkpoint = await openCheckpoint(dir);
  t.after(() => checkpoint.close());
  const { config } = checkpoint;
  assert.equal(config.numLayers, 5);
  assert.deepEqual(checkpoint.unexpectedTensors, []);
  const family = familyOf(config);
  const { embedding, finalNorm } = family.modelSources(config);
  const values = toF32(await checkpoint.read(embedding));
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  const deviation = Math.sqrt(
    values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / values.length,
  );
  assert.ok(Math.abs(mean) < 0.001 && Math.abs(deviation - 0.02) < 0.001, `${mean}, ${deviation}`);
  const norm = toF32(await checkpoint.read(finalNorm));
  assert.ok(norm.every((value) => value > 0.4 && value < 1.6));
  assert.equal(seen, 2 * parametersOf(config));
});

test("weights depend on seed and tensor, not on the number of layers or files", async (t) => {
  const dir = await temporaryDir(t);
  const read = async (name: string, layers: number, seed: number, shardBytes: number) => {
    const out = join(dir, name);
    await synthesize(out, layers, seed, shardBytes);
    const checkpoint = await openCheckpoint(out);
    const { config } = checkpoint;
    const expert = (e: number) => familyOf(config).expertSources(config, 1, e).down;
    const values = [await checkpoint.read(expert(0)), await checkpoint.read(expert(1))];
    await checkpoint.close();
    return values.map(({ bytes }) => Buffer.from(bytes).toString("base64"));
  };
  const [first, second] = await read("one", 2, 7, 2 ** 30);
  assert.notEqual(first, second);
  assert.deepEqual(await read("sharded", 4, 7, 100_000), [first, second]);
  assert.notEqual((await read("reseeded", 2, 8, 2 ** 30))[0], first);
  const files = await readdir(join(dir, "sharded"));
  const numShards = files.filter((file) => file.endsWith(".safetensors")).length;
  assert.ok(numShards > 3, files.join(" "));
  const text = await readFile(join(dir, "sharded/model.safetensors.index.json"), "utf8");
  const index = JSON.parse(text) as { metadata: { total_size: number } };
  const config = parseModelConfig(await readRawConfig(join(dir, "sharded")), "");
  assert.equal(index.metadata.total_size, 2 * parametersOf(config));
});

test("lists of a config follow its number of layers, and a quantization goes", () => {
  const raw = {
    num_hidden_layers: 4,
    layer_types: ["sliding", "full", "sliding", "full"],
    mlp_only_layers: [0, 3],
    architectures: ["A"],
    quantization_config: {},
  };
  assert.deepEqual(withLayers(raw, 3), {
    num_hidden_layers: 3,
    layer_types: ["sliding", "full", "sliding"],
    mlp_only_layers: [0],
    architectures: ["A"],
  });
  assert.deepEqual(withLayers(raw, 6).layer_types, [...raw.layer_types, "sliding", "full"]);
});

test("a directory that holds something is left as it is", async (t) => {
  const dir = await temporaryDir(t);
  await writeFile(join(dir, "mine.txt"), "");
  await assert.rejects(synthesize(dir, 1), /is not empty \(mine\.txt\)/);
  assert.deepEqual(await readdir(dir), ["mine.txt"]);
});

/** Parameters as published, billions. */
const PUBLISHED: Readonly<Record<string, number>> = {
  "deepseek-moe-16b": 16.38,
  "deepseek-v2": 235.74,
  "deepseek-v2-lite": 15.71,
  "deepseek-v3": 671.0,
  "gpt-oss-20b": 20.91,
  "granite-3.1-1b-a400m": 1.33,
  "kimi-k2": 1026.4,
  "mixtral-8x7b": 46.7,
  "olmoe-1b-7b": 6.92,
  "qwen1.5-moe-a2.7b": 14.32,
  "qwen3-30b-a3b": 30.53,
};

for (const name of await shippedConfigs()) {
  const { file, raw } = await readSyntheticConfig(name);
  test(`${name} has as many parameters as the published model`, () => {
    // Without the scales of quantized weights.
    const billions = parametersOf(parseModelConfig(withLayers(raw, undefined), file)) / 1e9;
    const rounding = Math.max(0.006, PUBLISHED[name] * 1e-4);
    assert.ok(Math.abs(billions - PUBLISHED[name]) < rounding, `${billions}`);
  });
}

test("a config that is neither a file nor shipped is refused with the names of those that are", async () => {
  await assert.rejects(readSyntheticConfig("gpt-5"), /--config gpt-5: no such file.*mixtral-8x7b/);
});
