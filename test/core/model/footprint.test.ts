import assert from "node:assert/strict";
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";

import { openCheckpoint } from "../../../core/model/checkpoint/checkpoint.ts";
import { MODEL_PARTS, modelSize, parameterCounts } from "../../../core/model/footprint.ts";
import type { JsonObject } from "../../../core/model/checkpoint/json-file.ts";
import { parseModelConfig } from "../../../core/model/load-config.ts";
import { DEMO_MODEL } from "../../../bench/rig/cluster.ts";

const CONFIGS = join(import.meta.dirname, "../../../bench/synthetic/configs");

/** Parameters in billions: all, and those that a token reads without the input embedding. */
const PUBLISHED: Readonly<Record<string, readonly [number, number]>> = {
  "deepseek-moe-16b": [16.38, 2.62],
  "deepseek-v2": [235.74, 20.85],
  "deepseek-v2-lite": [15.71, 2.45],
  "deepseek-v3": [671.03, 36.63],
  "gpt-oss-20b": [20.91, 3.61],
  "granite-3.1-1b-a400m": [1.33, 0.43],
  "kimi-k2": [1026.4, 31.69],
  "mixtral-8x7b": [46.7, 12.75],
  "olmoe-1b-7b": [6.92, 1.18],
  "qwen1.5-moe-a2.7b": [14.32, 2.38],
  "qwen3-30b-a3b": [30.53, 3.04],
};

test("parameters of published configs are those of the published models", async () => {
  let compared = 0;
  for (const file of await readdir(CONFIGS)) {
    const published = PUBLISHED[file.replace(".json", "")];
    const raw = JSON.parse(await readFile(join(CONFIGS, file), "utf8")) as JsonObject;
    const config = parseModelConfig(raw, file);
    const { total, active } = parameterCounts(config, modelSize(config));
    const rounding = Math.max(0.01, published[0] * 5e-5);
    assert.ok(Math.abs(total / 1e9 - published[0]) < rounding, `${file}: ${total}`);
    assert.ok(Math.abs(active / 1e9 - published[1]) < 0.01, `${file}: ${active} active`);
    compared++;
  }
  assert.ok(compared > 0);
});

test("the parts are the elements of the checkpoint's tensors, a tied output head none", async () => {
  const checkpoint = await openCheckpoint(DEMO_MODEL);
  const { config } = checkpoint;
  await checkpoint.close();
  const size = modelSize(config);
  const file = await readFile(join(DEMO_MODEL, "model.safetensors"));
  const headerBytes = Number(file.readBigUInt64LE(0));
  const header = JSON.parse(file.toString("utf8", 8, 8 + headerBytes)) as Record<
    string,
    { shape: number[] }
  >;
  const elements = (pattern: RegExp) =>
    Object.entries(header)
      .filter(([name]) => pattern.test(name))
      .reduce((sum, [, { shape }]) => sum + shape.reduce((a, b) => a * b, 1), 0);
  const of = Object.fromEntries(
    MODEL_PARTS.map((part) => [part, size[part].matrices + size[part].vectors]),
  );
  assert.deepEqual(of, {
    embedding: elements(/^model\.embed_tokens/u),
    lmHead: elements(/^model\.norm/u),
    attention: elements(/self_attn|layernorm/u),
    gates: elements(/mlp\.gate\.|shared_expert_gate/u),
    shared: elements(/shared_expert\./u),
    dense: 0,
    experts: elements(/mlp\.experts\./u),
  });
  const { total, active } = parameterCounts(config, size);
  assert.equal(total, elements(/^model/u));
  const { numExperts, numExpertsPerToken } = config;
  const idle = of.experts * (1 - numExpertsPerToken / numExperts);
  assert.equal(active, total - idle, "a tied embedding is read");
});
