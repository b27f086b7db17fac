// Checkpoints with FP8 and MXFP4 weights, whole and broken.
import assert from "node:assert/strict";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";

import { CheckpointError } from "../../../../core/model/checkpoint/checkpoint-error.ts";
import { openCheckpoint } from "../../../../core/model/checkpoint/checkpoint.ts";
import { expectedTensors } from "../../../../core/model/families/families.ts";
import { readModelConfig } from "../../../../core/model/load-config.ts";
import { readExpert, readLayer } from "../../../../core/model/checkpoint/weights.ts";
import { bytesOf, f32FromBytes, numElements } from "../../../../core/tensor.ts";
import {
  allWeights,
  fuse,
  goldenDir,
  goldenWith,
  openForTest,
  PROJECTIONS,
} from "./layout-fixture.ts";
import { copyModel, encodeSafetensors, type TestTensor } from "./safetensors-writer.ts";

/** Bytes that a linear congruential generator gives. */
function seededBytes(length: number, seed: number): Uint8Array {
  let state = seed + 1;
  return Uint8Array.from({ length }, () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return state >>> 24;
  });
}

/** Random tensors of a config in the published encodings; FP8 bytes that are numbers, scales of about one. */
function randomTensors(config: Parameters<typeof expectedTensors>[0]): Map<string, TestTensor> {
  const tensors = new Map<string, TestTensor>();
  for (const [name, { dtype, shape }] of expectedTensors(config)) {
    const bytes = seededBytes(numElements(shape), tensors.size);
    const data =
      dtype === "F8_E4M3"
        ? bytes.map((byte) => (byte % 128 === 127 ? 0 : byte))
        : dtype === "F32"
          ? bytesOf(Float32Array.from(bytes, (byte) => 0.5 + byte / 256))
          : bytesOf(Uint16Array.from(bytes, (byte) => 0x3c00 + byte));
    tensors.set(name, { dtype, shape, data });
  }
  return tensors;
}

/** Sizes that leave partial blocks at both edges. */
const FP8_CONFIG = {
  hidden_size: 136,
  moe_intermediate_size: 264,
  kv_lora_rank: 136,
  quantization_config: { quant_method: "fp8", fmt: "e4m3", weight_block_size: [128, 128] },
};

test("FP8 weights of DeepSeek-V3 are read times their blocks' scales, and plain ones beside them as they are", async (t) => {
  const dir = await copyModel(t, goldenDir("deepseek_v3"), FP8_CONFIG);
  const config = await readModelConfig(dir);
  const tensors = randomTensors(config);
  await writeFile(join(dir, "model.safetensors"), encodeSafetensors(tensors));
  const checkpoint = await openForTest(t, dir);
  assert.deepEqual(checkpoint.unexpectedTensors, []);
  const { gate, down } = await readExpert(checkpoint, 2, 9);
  const { attention, ffn } = await readLayer(checkpoint, 2);
  assert.ok(attention.kind === "latent" && ffn.kind === "moe");
  const prefix = "model.layers.2.mlp.experts.9";
  for (const [name, weight] of [
    [`${prefix}.gate_proj`, gate],
    [`${prefix}.down_proj`, down],
    ["model.layers.2.self_attn.kv_a_proj_with_mqa", attention.kvDown],
    ["model.layers.2.mlp.shared_experts.up_proj", ffn.shared!.expert.up],
  ] as const) {
    assert.equal(weight.dtype, "F32");
    const [rows, columns] = weight.shape;
    const { data } = tensors.get(`${name}.weight`)!;
    const scales = f32FromBytes(tensors.get(`${name}.weight_scale_inv`)!.data);
    const across = Math.ceil(columns / 128);
    const values = f32FromBytes(weight.bytes);
    for (let i = 0; i < rows * columns; i += 37) {
      const [row, column] = [Math.floor(i / columns), i % columns];
      const scale = scales[Math.floor(row / 128) * across + Math.floor(column / 128)];
      assert.equal(values[i], Math.fround(e4m3(data[i]) * scale), `${name} [${row}, ${column}]`);
    }
  }
  assert.equal(ffn.gate.weight.dtype, "BF16");
  assert.equal(ffn.correction?.dtype, "F32");
  assert.equal(attention.kvNorm.dtype, "BF16");
});

/** Value of an E4M3 byte, by its bits. */
function e4m3(byte: number): number {
  const exponent = Math.floor(byte / 8) % 16;
  const fraction = (byte % 8) / 8;
  const magnitude = exponent === 0 ? fraction * 2 ** -6 : (1 + fraction) * 2 ** (exponent - 7);
  return byte >= 128 ? -magnitude : magnitude;
}

test("FP8 experts of a layer in two tensors have the weights of separate ones; blocks that gate and up share are refused", async (t) => {
  const quantization_config = FP8_CONFIG.quantization_config;
  const sizes = {
    hidden_size: 136,
    moe_intermediate_size: 128,
    num_experts: 3,
    quantization_config,
  };
  const dir = await copyModel(t, goldenDir("qwen3_moe"), { ...sizes, num_experts_per_tok: 2 });
  const write = async (tensors: ReadonlyMap<string, TestTensor>) => {
    await writeFile(join(dir, "model.safetensors"), encodeSafetensors(tensors));
    const checkpoint = await openForTest(t, dir);
    return allWeights(checkpoint);
  };
  const separate = randomTensors(await readModelConfig(dir));
  assert.deepEqual(await write(fuse(separate, PROJECTIONS)), await write(separate));
  const odd = await copyModel(t, goldenDir("qwen3_moe"), {
    ...sizes,
    moe_intermediate_size: 72,
    num_experts_per_tok: 2,
  });
  const config = await readModelConfig(odd);
  const fused = fuse(randomTensors(config), PROJECTIONS);
  await writeFile(join(odd, "model.safetensors"), encodeSafetensors(fused));
  await assert.rejects(
    openCheckpoint(odd),
    /rows from 72 in steps of 1 of F8_E4M3, expected rows that begin with a block of 128/,
  );
});

test("quantized weights without their scales, or in another integer format, are refused by name", async (t) => {
  const name = "model.layers.2.mlp.experts.9.up_proj.weight";
  const wrong: [(tensors: Map<string, TestTensor>) => void, RegExp][] = [
    [
      (tensors) => tensors.delete(`${name}_scale_inv`),
      /up_proj\.weight_scale_inv is missing, expected \[3, 2\]/,
    ],
    [
      (tensors) =>
        tensors.set(`${name}_scale_inv`, { dtype: "F32", shape: [2, 3], data: new Uint8Array(24) }),
      /up_proj\.weight_scale_inv: shape is \[2, 3\], expected \[3, 2\]/,
    ],
    [
      (tensors) => tensors.set(name, { ...tensors.get(name)!, dtype: "I8" }),
      /up_proj\.weight: dtype is I8/,
    ],
    [
      (tensors) => tensors.set(name, { ...tensors.get(name)!, dtype: "F8_E5M2" }),
      /dtype is F8_E5M2/,
    ],
  ];
  for (const [change, message] of wrong) {
    const dir = await copyModel(t, goldenDir("deepseek_v3"), FP8_CONFIG);
    const tensors = randomTensors(await readModelConfig(dir));
    change(tensors);
    await writeFile(join(dir, "model.safetensors"), encodeSafetensors(tensors));
    await assert.rejects(openCheckpoint(dir), (error) => {
      assert.ok(error instanceof CheckpointError, String(error));
      assert.match(error.message, message);
      return true;
    });
  }
  const unscaled = await goldenWith(t, "gpt_oss", (tensors) => {
    tensors.delete("model.layers.1.mlp.experts.down_proj_scales");
    return tensors;
  });
  await assert.rejects(
    openCheckpoint(unscaled),
    /experts\.down_proj_scales is missing, expected \[8, 64, 2\]/,
  );
});
