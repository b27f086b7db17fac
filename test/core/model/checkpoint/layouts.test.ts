// Checkpoints in other layouts than the published ones give the goldens' weights.
import assert from "node:assert/strict";
import { join } from "node:path";
import { test, type TestContext } from "node:test";

import { CheckpointError } from "../../../../core/model/checkpoint/checkpoint-error.ts";
import { familyOf } from "../../../../core/model/families/families.ts";
import { readExpert } from "../../../../core/model/checkpoint/weights.ts";
import { bytesOf, toF32 } from "../../../../core/tensor.ts";
import {
  allWeights,
  fuse,
  goldenDir,
  goldenWith,
  openForTest,
  PROJECTIONS,
} from "./layout-fixture.ts";
import { decodeSafetensors, type TestTensor } from "./safetensors-writer.ts";

async function assertSameWeights(t: TestContext, name: string, resaved: string): Promise<void> {
  const checkpoint = await openForTest(t, resaved);
  assert.deepEqual(checkpoint.unexpectedTensors, []);
  const golden = await openForTest(t, goldenDir(name));
  assert.deepEqual(await allWeights(checkpoint), await allWeights(golden));
}

for (const name of ["deepseek", "deepseek_v2", "deepseek_v3", "olmoe", "qwen2_moe", "qwen3_moe"]) {
  test(`${name} with the experts of a layer in two tensors has the published weights`, async (t) => {
    const dir = await goldenWith(t, name, (tensors) => fuse(tensors, PROJECTIONS));
    await assertSameWeights(t, name, dir);
  });
}

test("mixtral under the names of transformers 5 has the published weights", async (t) => {
  const dir = await goldenWith(t, "mixtral", (tensors) => fuse(tensors, ["w1", "w3", "w2"]));
  await assertSameWeights(t, "mixtral", dir);
});

/** Values of MXFP4 tensors [numExperts, rows, groups, 16] as BF16 [numExperts, columns, rows]. */
function transposedFloats(blocks: TestTensor, scales: TestTensor): TestTensor {
  const magnitudes = [0, 0.5, 1, 1.5, 2, 3, 4, 6];
  const [numExperts, rows, groups] = blocks.shape;
  const columns = groups * 32;
  const halves = new Uint16Array(numExperts * rows * columns);
  for (let expert = 0; expert < numExperts; expert++) {
    for (let row = 0; row < rows; row++) {
      for (let column = 0; column < columns; column++) {
        const at = (expert * rows + row) * columns + column;
        const code = (blocks.data[at >> 1] >> (4 * (at % 2))) % 16;
        const scale = 2 ** (scales.data[at >> 5] - 127);
        const value = (code < 8 ? 1 : -1) * magnitudes[code % 8] * scale;
        const bits = new Uint32Array(Float32Array.of(value).buffer)[0];
        halves[(expert * columns + column) * rows + row] = bits >>> 16;
      }
    }
  }
  return { dtype: "BF16", shape: [numExperts, columns, rows], data: bytesOf(halves) };
}

for (const config of [{}, { quantization_config: undefined }]) {
  const what = Object.keys(config).length > 0 ? "without" : "with";
  test(`gpt_oss in plain floats [in, out] has the published weights, ${what} its quantization_config`, async (t) => {
    const unpack = (tensors: Map<string, TestTensor>) => {
      const floats = new Map<string, TestTensor>();
      for (const [name, tensor] of tensors) {
        if (name.endsWith("_scales")) continue;
        const own = name.replace(/_blocks$/u, "");
        const scales = tensors.get(`${own}_scales`);
        floats.set(own, scales ? transposedFloats(tensor, scales) : tensor);
      }
      return floats;
    };
    const floats = await goldenWith(t, "gpt_oss", unpack, config);
    await assertSameWeights(t, "gpt_oss", floats);
    assert.equal((await openForTest(t, floats)).storedExperts, undefined);
  });
}

test("a checkpoint says MXFP4 of its experts where the files have all of them so", async (t) => {
  for (const [name, stored] of [
    ["gpt_oss", "mxfp4"],
    ["variants/gpt_oss_bf16", undefined],
    ["variants/deepseek_v3_fp8", undefined],
    ["mixtral", undefined],
  ] as const) {
    assert.equal((await openForTest(t, goldenDir(name))).storedExperts, stored, name);
  }
});

test("granitemoe's gate stands above up; gpt_oss's rows and biases take turns", async (t) => {
  const granite = await openForTest(t, goldenDir("granitemoe"));
  const tensors = await decodeSafetensors(join(goldenDir("granitemoe"), "model.safetensors"));
  const input = tensors.get("model.layers.1.block_sparse_moe.input_linear.weight")!;
  const { gate, up } = await readExpert(granite, 1, 3);
  const rowBytes = 2 * 64;
  const row = (index: number) => input.data.subarray(index * rowBytes, (index + 1) * rowBytes);
  assert.deepEqual(Buffer.from(gate.bytes.subarray(0, rowBytes)), row(3 * 80));
  assert.deepEqual(Buffer.from(up.bytes.subarray(39 * rowBytes)), row(3 * 80 + 79));
  const oss = await openForTest(t, goldenDir("gpt_oss"));
  const ossTensors = await decodeSafetensors(join(goldenDir("gpt_oss"), "model.safetensors"));
  const expert = await readExpert(oss, 2, 5);
  const all = ossTensors.get("model.layers.2.mlp.experts.gate_up_proj_bias")!;
  const biases = toF32({ dtype: "BF16", shape: all.shape, bytes: all.data });
  const own = biases.subarray(5 * 128, 6 * 128);
  assert.deepEqual(
    toF32(expert.gateBias!),
    own.filter((_, i) => i % 2 === 0),
  );
  assert.deepEqual(
    toF32(expert.upBias!),
    own.filter((_, i) => i % 2 === 1),
  );
  assert.deepEqual(expert.downBias?.shape, [64]);
});

test("reading an expert touches its own bytes of a layer's tensors, those of gate and up once", async (t) => {
  for (const [name, own] of [
    ["granitemoe", 2 * 3 * 40 * 64],
    ["gpt_oss", 3 * 64 * (32 + 2) + 2 * (128 + 64)],
  ] as const) {
    const checkpoint = await openForTest(t, goldenDir(name));
    const before = checkpoint.bytesRead();
    await readExpert(checkpoint, 1, 3);
    assert.equal(checkpoint.bytesRead() - before, own);
  }
});

test("layers behind the last one are skipped in a DeepSeek-V3 alone", async (t) => {
  const extra = { dtype: "BF16", shape: [1], data: new Uint8Array(2) };
  const add = (tensors: Map<string, TestTensor>) =>
    tensors.set("model.layers.3.x", extra).set("x", extra);
  const v3 = await openForTest(t, await goldenWith(t, "deepseek_v3", add));
  assert.deepEqual(v3.unexpectedTensors, ["x"]);
  const v2 = await openForTest(t, await goldenWith(t, "deepseek_v2", add));
  assert.deepEqual(v2.unexpectedTensors, ["model.layers.3.x", "x"]);
});

test("a tensor of a part that the config does not switch on is refused by name, one that is derived is not", async (t) => {
  const open = async (...names: readonly string[]) => {
    const extra = { dtype: "BF16", shape: [1], data: new Uint8Array(2) };
    const add = (tensors: Map<string, TestTensor>) => {
      for (const name of names) tensors.set(name, extra);
      return tensors;
    };
    return openForTest(t, await goldenWith(t, "mixtral", add));
  };
  for (const name of [
    "model.layers.1.self_attn.q_proj.bias",
    "model.layers.0.self_attn.k_norm.weight",
    "model.layers.0.self_attn.sinks",
    "model.layers.0.pre_feedforward_layernorm.weight",
    "model.layers.0.block_sparse_moe.gate.bias",
    "model.norm.bias",
    "lm_head.bias",
  ]) {
    await assert.rejects(open(name), (error) => {
      assert.ok(error instanceof CheckpointError, String(error));
      assert.ok(error.message.includes(`tensor ${name}: unknown to mixtral`), error.message);
      return true;
    });
  }
  await assert.rejects(open("model.norm.bias", "lm_head.bias"), /lm_head\.bias, and 1 more/u);
  const harmless = [
    "model.layers.0.self_attn.k_proj.weight_scale_inv",
    "model.layers.0.self_attn.rotary_emb.inv_freq",
    "model.layers.0.self_attn.v_scale",
  ];
  assert.deepEqual((await open(...harmless)).unexpectedTensors, harmless);
});

test("a tensor of several sources is read for all of them at once", async (t) => {
  const checkpoint = await openForTest(t, goldenDir("gpt_oss"));
  const { config } = checkpoint;
  const { gate, up } = familyOf(config).expertSources(config, 0, 1);
  const [first, second] = await checkpoint.readTogether([gate, up]);
  assert.deepEqual(first, await checkpoint.read(gate));
  assert.deepEqual(second, await checkpoint.read(up));
});
