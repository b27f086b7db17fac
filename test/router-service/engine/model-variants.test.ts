// Options of the family that the goldens do not have: random weights, the GPU judged by the plain loops.
import assert from "node:assert/strict";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { after, test } from "node:test";

import { openGpu } from "../../../core/gpu/device.ts";
import { openCheckpoint } from "../../../core/model/checkpoint/checkpoint.ts";
import { expectedTensors } from "../../../core/model/families/families.ts";
import { readModelConfig } from "../../../core/model/load-config.ts";
import { bytesOf } from "../../../core/tensor.ts";
import { encodeSafetensors, temporaryDir } from "../../core/model/checkpoint/safetensors-writer.ts";
import { TINY_MODEL } from "../../../bench/rig/cluster.ts";
import { createCpuTestRunner } from "../../support/cpu-runner-factory.ts";
import { randomValues } from "../../support/gpu-fixture.ts";
import { gpuRunnerFactory } from "../../support/gpu-runner-factory.ts";
import { batchOf, distance } from "../../support/step-batch.ts";

const gpu = await openGpu();
after(() => gpu.close());

const VARIANTS: Readonly<Record<string, object>> = {
  "dense layers and no bias on q, k and v": {
    mlp_only_layers: [0],
    decoder_sparse_step: 2,
    num_hidden_layers: 4,
    qkv_bias: false,
  },
  "no shared expert, top-k weights that are divided by their sum and fewer tokens than candidates":
    {
      vocab_size: 48,
      shared_expert_intermediate_size: 0,
      norm_topk_prob: true,
    },
  "tied embeddings of 391 tokens and one KV head of 24 for four query heads": {
    tie_word_embeddings: true,
    vocab_size: 391,
    num_key_value_heads: 1,
    head_dim: 24,
  },
};

/** Writes a checkpoint with random weights: matrices scaled by their width, norms around one. */
async function writeVariant(dir: string, changes: object): Promise<void> {
  const base = JSON.parse(await readFile(join(TINY_MODEL, "config.json"), "utf8")) as object;
  await writeFile(join(dir, "config.json"), JSON.stringify({ ...base, ...changes }));
  const config = await readModelConfig(dir);
  const tensors = new Map(
    [...expectedTensors(config)].map(([name, { shape }], index) => {
      const length = shape.reduce((a, b) => a * b, 1);
      const values = randomValues(
        length,
        index + 1,
        shape.length === 1 ? 0.3 : 2 / Math.sqrt(shape[1]),
      );
      if (name.includes("norm")) for (let i = 0; i < length; i++) values[i] += 1;
      return [name, { dtype: "F32", shape, data: bytesOf(values) }] as const;
    }),
  );
  await writeFile(join(dir, "model.safetensors"), encodeSafetensors(tensors));
}

for (const [what, changes] of Object.entries(VARIANTS)) {
  test(`the GPU and the plain loops agree on a model with ${what}`, async (t) => {
    const dir = await temporaryDir(t);
    await writeVariant(dir, changes);
    const checkpoint = await openCheckpoint(dir);
    const limits = {
      maxTokens: 64,
      maxSequences: 2,
      maxSamples: 64,
      maxModelLen: 64,
      numBlocks: 8,
    };
    const cpu = await createCpuTestRunner(checkpoint, limits);
    const onGpu = await gpuRunnerFactory(gpu)(checkpoint, limits);
    const tokenIds = Array.from(
      { length: 40 },
      (_, i) => (i * 53 + 390) % checkpoint.config.vocabSize,
    );
    const batch = batchOf([
      { tokenIds, from: 0, blocks: [4, 1, 2] },
      { tokenIds: tokenIds.slice(7, 12), from: 0, blocks: [0] },
    ]);
    const samples = batch.samples.map((sample) => ({ ...sample, numCandidates: 64 }));
    const context = { signal: new AbortController().signal };
    const expected = await cpu.forward({ ...batch, samples }, context);
    const actual = await onGpu.forward({ ...batch, samples }, context);
    for (const [row, { logits }] of expected.samples.entries()) {
      const far = distance(actual.samples[row].logits ?? [], logits ?? []);
      assert.ok(far <= 1e-4, `token ${row}: ${far}`);
      assert.equal(
        actual.samples[row].candidateLogits.length,
        Math.min(64, checkpoint.config.vocabSize),
      );
      assert.equal(actual.samples[row].candidateIds[0], expected.samples[row].candidateIds[0]);
    }
    assert.deepEqual([...actual.routing.keys()], [...expected.routing.keys()]);
    onGpu.close();
    await checkpoint.close();
  });
}
