import assert from "node:assert/strict";
import { access } from "node:fs/promises";
import { join } from "node:path";
import { test, type TestContext } from "node:test";

import { writeGguf } from "../../../bench/peers/gguf-file.ts";
import { writeQwen2MoeGguf } from "../../../bench/peers/gguf-writer.ts";
import { openCheckpoint } from "../../../core/model/checkpoint/checkpoint.ts";
import { familyOf } from "../../../core/model/families/families.ts";
import { bytesOf, f16FromBytes, f32FromBytes, f32ToF16, toF32 } from "../../../core/tensor.ts";
import { copyModel, temporaryDir } from "../../core/model/checkpoint/safetensors-writer.ts";
import { TINY_MODEL } from "../../../bench/rig/cluster.ts";
import { readGguf } from "./gguf-reader.ts";

async function writeTiny(t: TestContext, config: Record<string, unknown> = {}) {
  const dir = await copyModel(t, TINY_MODEL, config);
  const checkpoint = await openCheckpoint(dir);
  t.after(() => checkpoint.close());
  const file = join(dir, "model.gguf");
  const progress: (readonly [number, number])[] = [];
  await writeQwen2MoeGguf(checkpoint, file, (done, total) => progress.push([done, total]));
  return { checkpoint, progress, gguf: await readGguf(file) };
}

test("a GGUF file of a Qwen2-MoE checkpoint names its sizes as llama.cpp reads them", async (t) => {
  const { checkpoint, gguf } = await writeTiny(t);
  const { config } = checkpoint;
  assert.equal(gguf.version, 3);
  const { metadata } = gguf;
  assert.equal(metadata.get("general.architecture"), "qwen2moe");
  const expected: Record<string, number> = {
    block_count: config.numLayers,
    embedding_length: config.hiddenSize,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.key_length": 16,
    "attention.layer_norm_rms_epsilon": Math.fround(config.rmsNormEps),
    "rope.freq_base": 1_000_000,
    expert_count: config.numExperts,
    expert_used_count: config.numExpertsPerToken,
    expert_feed_forward_length: config.expertIntermediateSize,
    expert_shared_feed_forward_length: 112,
  };
  for (const [key, value] of Object.entries(expected)) {
    assert.equal(metadata.get(`qwen2moe.${key}`), value, key);
  }
  const tokens = metadata.get("tokenizer.ggml.tokens") as string[];
  assert.equal(new Set(tokens).size, config.vocabSize);
});

test("a layer's experts lie one after the other in one f16 tensor, norms and gates are f32", async (t) => {
  const { checkpoint, gguf, progress } = await writeTiny(t);
  const { config } = checkpoint;
  const { hiddenSize, numExperts, expertIntermediateSize, numLayers } = config;
  assert.equal(gguf.tensors.size, 3 + numLayers * 17);
  const layer = numLayers - 1;
  const down = gguf.tensors.get(`blk.${layer}.ffn_down_exps.weight`)!;
  assert.deepEqual(down.dims, [expertIntermediateSize, hiddenSize, numExperts]);
  assert.equal(down.type, 1);
  const length = expertIntermediateSize * hiddenSize;
  for (const expert of [0, 1, numExperts - 1]) {
    const { down: source } = familyOf(config).expertSources(config, layer, expert);
    const expected = f32ToF16(toF32(await checkpoint.read(source)));
    const actual = f16FromBytes(down.data.subarray(2 * expert * length, 2 * (expert + 1) * length));
    assert.deepEqual(actual, expected, `expert ${expert}`);
  }
  const norm = gguf.tensors.get("blk.0.ffn_norm.weight")!;
  assert.deepEqual([norm.type, norm.dims], [0, [hiddenSize]]);
  const attention = familyOf(config).attentionSources(config, 0);
  const source = toF32(await checkpoint.read(attention.postAttentionNorm));
  assert.deepEqual(f32FromBytes(norm.data.subarray(0, 4 * hiddenSize)), source);
  const sharedGate = gguf.tensors.get("blk.0.ffn_gate_inp_shexp.weight")!;
  assert.deepEqual([sharedGate.type, sharedGate.dims], [0, [hiddenSize]]);
  const [done, total] = progress[progress.length - 1];
  assert.equal(done, total);
});

test("a checkpoint that llama.cpp's qwen2moe would compute otherwise is refused by name", async (t) => {
  await assert.rejects(writeTiny(t, { norm_topk_prob: true }), /norm_topk_prob is true/);
});

test("a file whose tensors are not as long as their shapes is not left behind", async (t) => {
  const file = join(await temporaryDir(t), "short.gguf");
  const tensor = {
    name: "short",
    type: "F32",
    shape: [2, 3],
    async *chunks() {
      yield bytesOf(new Float32Array(5));
    },
  } as const;
  await assert.rejects(
    writeGguf(file, new Map(), [tensor]),
    /short: 20 bytes, expected 24 of F32 \[2, 3\]/,
  );
  await assert.rejects(access(file), /ENOENT/);
  await assert.rejects(access(`${file}.partial`), /ENOENT/);
});
