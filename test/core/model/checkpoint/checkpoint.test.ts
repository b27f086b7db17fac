import assert from "node:assert/strict";
import { readFile, rm, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test, type TestContext } from "node:test";

import { CheckpointError } from "../../../../core/model/checkpoint/checkpoint-error.ts";
import { openCheckpoint } from "../../../../core/model/checkpoint/checkpoint.ts";
import { SafetensorsError } from "../../../../core/model/checkpoint/safetensors.ts";
import {
  readExpert,
  readLayer,
  readModelWeights,
} from "../../../../core/model/checkpoint/weights.ts";
import {
  copyModel,
  decodeSafetensors,
  encodeSafetensors,
  type TestTensor,
} from "./safetensors-writer.ts";

const demoDir = join(import.meta.dirname, "../../../../models/demo-moe");
const goldenDir = join(import.meta.dirname, "../../../goldens/qwen2_moe");
const golden = await decodeSafetensors(join(goldenDir, "model.safetensors"));
const EXPERT = "model.layers.1.mlp.experts.7.up_proj.weight";

async function openForTest(t: TestContext, dir: string) {
  const checkpoint = await openCheckpoint(dir);
  t.after(() => checkpoint.close());
  return checkpoint;
}

/** A copy of the golden model whose tensors went through `change`. */
async function goldenWith(t: TestContext, change: (tensors: Map<string, TestTensor>) => void) {
  const dir = await copyModel(t, goldenDir);
  const tensors = new Map(golden);
  change(tensors);
  await writeFile(join(dir, "model.safetensors"), encodeSafetensors(tensors));
  return dir;
}

async function hashOf(dir: string): Promise<string> {
  const checkpoint = await openCheckpoint(dir);
  await checkpoint.close();
  return checkpoint.modelHash;
}

/** A tensor as it stands in the file; the shape is that of config.json, which opening has checked. */
const named = (name: string, shape = golden.get(name)?.shape ?? []) => ({ name, shape });

test("the golden checkpoint opens, and every tensor reads as it stands in the file", async (t) => {
  const checkpoint = await openForTest(t, goldenDir);
  assert.deepEqual(checkpoint.tensorNames, [...golden.keys()].sort());
  assert.deepEqual(checkpoint.unexpectedTensors, []);
  assert.deepEqual(checkpoint.generation.eosTokenIds, [1]);
  assert.match(checkpoint.modelHash, /^[0-9a-f]{64}$/);
  for (const [name, { dtype, shape, data }] of golden) {
    const tensor = await checkpoint.read(named(name));
    assert.deepEqual([tensor.dtype, tensor.shape], [dtype, shape]);
    assert.ok(Buffer.from(tensor.bytes).equals(data), name);
  }
});

test("weights come by what they are for", async (t) => {
  const checkpoint = await openForTest(t, goldenDir);
  const model = await readModelWeights(checkpoint);
  assert.deepEqual(model.lmHead.shape, [384, 64]);
  assert.notDeepEqual(model.lmHead.bytes, model.embedding.bytes);
  const layer = await readLayer(checkpoint, 2);
  assert.ok(layer.attention.kind === "heads");
  assert.deepEqual(layer.attention.q.weight.shape, [64, 64]);
  assert.deepEqual(layer.attention.k.bias?.shape, [32]);
  assert.deepEqual(layer.attention.o.weight.shape, [64, 64]);
  assert.ok(layer.ffn.kind === "moe");
  assert.deepEqual(layer.ffn.gate.weight.shape, [12, 64]);
  assert.deepEqual(layer.ffn.shared?.gate?.shape, [1, 64]);
  assert.deepEqual(layer.ffn.shared?.expert.down.shape, [64, 112]);
  const expert = await readExpert(checkpoint, 1, 7);
  assert.ok(Buffer.from(expert.up.bytes).equals(golden.get(EXPERT)!.data));
  assert.deepEqual(
    [expert.gate.shape, expert.down.shape],
    [
      [40, 64],
      [64, 40],
    ],
  );
  for (const [layer, id] of [
    [0, 12],
    [3, 0],
    [-1, 0],
    [0, -1],
    [0, 0.5],
  ]) {
    await assert.rejects(readExpert(checkpoint, layer, id), RangeError);
  }
});

test("a dense layer and tied embeddings read from the tensors that the config names", async (t) => {
  const dir = await copyModel(t, goldenDir, { mlp_only_layers: [1], tie_word_embeddings: true });
  const tensors = new Map(golden);
  for (const name of golden.keys()) {
    if (name.startsWith("model.layers.1.mlp.") || name === "lm_head.weight") tensors.delete(name);
  }
  const ffn = (shape: number[]) => ({ dtype: "F16", shape, data: new Uint8Array(2 * 160 * 64) });
  tensors.set("model.layers.1.mlp.gate_proj.weight", ffn([160, 64]));
  tensors.set("model.layers.1.mlp.up_proj.weight", ffn([160, 64]));
  tensors.set("model.layers.1.mlp.down_proj.weight", ffn([64, 160]));
  await writeFile(join(dir, "model.safetensors"), encodeSafetensors(tensors));
  const checkpoint = await openForTest(t, dir);
  const layer = await readLayer(checkpoint, 1);
  assert.ok(layer.ffn.kind === "dense");
  assert.deepEqual(layer.ffn.dense.down.shape, [64, 160]);
  const model = await readModelWeights(checkpoint);
  assert.equal(model.lmHead, model.embedding);
  await assert.rejects(readExpert(checkpoint, 1, 0), RangeError);
});

test("opening the demo model reads at most 0.2 % of its data beside the header", async (t) => {
  const checkpoint = await openForTest(t, demoDir);
  const file = await readFile(join(demoDir, "model.safetensors"));
  const headerBytes = 8 + Number(file.readBigUInt64LE());
  const sampled = checkpoint.bytesRead() - headerBytes;
  assert.ok(sampled > 10_000 && sampled <= 0.002 * file.length, `${sampled} bytes`);
});

test("half of the experts cost half of the experts' bytes, the header and less than 1 %", async (t) => {
  const checkpoint = await openForTest(t, demoDir);
  const headerBytes =
    8 + Number((await readFile(join(demoDir, "model.safetensors"))).readBigUInt64LE());
  const { numLayers, numExperts, hiddenSize } = checkpoint.config;
  let held = 0;
  for (let layer = 0; layer < numLayers; layer++) {
    for (let expert = 0; expert < numExperts; expert += 2) {
      const { gate, up, down } = await readExpert(checkpoint, layer, expert);
      held += gate.bytes.length + up.bytes.length + down.bytes.length;
    }
  }
  assert.equal(held, (numLayers * numExperts * 3 * 64 * hiddenSize * 2) / 2);
  assert.ok(checkpoint.bytesRead() <= (held + headerBytes) * 1.01, `${checkpoint.bytesRead()}`);
});

test("a checkpoint in several files is the same checkpoint", async (t) => {
  const dir = await splitGolden(t);
  const checkpoint = await openForTest(t, dir);
  assert.equal(checkpoint.modelHash, await hashOf(goldenDir));
  for (const [name, { data }] of golden) {
    assert.ok(Buffer.from((await checkpoint.read(named(name))).bytes).equals(data), name);
  }
});

/** The golden model in three files with an index, which `change` may falsify. */
async function splitGolden(t: TestContext, change?: (weightMap: Record<string, unknown>) => void) {
  const dir = await copyModel(t, goldenDir);
  await rm(join(dir, "model.safetensors"));
  const weightMap: Record<string, unknown> = {};
  const names = [...golden.keys()];
  for (let part = 0; part < 3; part++) {
    const file = `model-0000${part + 1}-of-00003.safetensors`;
    const own = names.filter((_, i) => i % 3 === part);
    for (const name of own) weightMap[name] = file;
    const tensors = new Map(own.map((name) => [name, golden.get(name)!]));
    await writeFile(join(dir, file), encodeSafetensors(tensors));
  }
  change?.(weightMap);
  await writeFile(
    join(dir, "model.safetensors.index.json"),
    JSON.stringify({ metadata: {}, weight_map: weightMap }),
  );
  return dir;
}

test("an index that points elsewhere is refused by entry", async (t) => {
  const outside = [
    "../other.safetensors",
    "/etc/passwd",
    "a/../../b.safetensors",
    "..",
    ".",
    "",
    7,
    "a\0b",
  ];
  for (const value of outside) {
    const dir = await splitGolden(t, (weightMap) => (weightMap[EXPERT] = value));
    await assert.rejects(openCheckpoint(dir), (error) => {
      assert.ok(error instanceof CheckpointError, String(error));
      assert.ok(error.message.includes(`weight_map["${EXPERT}"] is ${JSON.stringify(value)}`));
      return true;
    });
  }
  const missing = await splitGolden(t, (weightMap) => (weightMap[EXPERT] = "gone.safetensors"));
  await assert.rejects(openCheckpoint(missing), /gone\.safetensors is not there/);
  const wrong = await splitGolden(t, (weightMap) => {
    weightMap[EXPERT] = Object.values(weightMap).find((file) => file !== weightMap[EXPERT]);
  });
  await assert.rejects(openCheckpoint(wrong), new RegExp(`tensor ${EXPERT} is missing`));
});

test("a directory without weights is refused", async (t) => {
  const dir = await copyModel(t, goldenDir);
  await rm(join(dir, "model.safetensors"));
  await assert.rejects(openCheckpoint(dir), CheckpointError);
  await writeFile(join(dir, "model.safetensors.index.json"), '{"weight_map":[]}');
  await assert.rejects(openCheckpoint(dir), CheckpointError);
});

const wrongTensors: [string, string, Partial<TestTensor> | undefined, RegExp][] = [
  ["missing", EXPERT, undefined, /is missing, expected \[40, 64\]/],
  ["transposed", EXPERT, { shape: [64, 40] }, /shape is \[64, 40\], expected \[40, 64\]/],
  ["flat", EXPERT, { shape: [2560] }, /shape is \[2560\], expected \[40, 64\]/],
  ["integers", EXPERT, { dtype: "I16" }, /dtype is I16, expected F32, F16, BF16 or/],
  [
    "too short",
    "model.norm.weight",
    { shape: [32], data: new Uint8Array(64) },
    /shape is \[32\], expected \[64\]/,
  ],
  [
    "too large",
    "lm_head.weight",
    { shape: [385, 64], data: new Uint8Array(385 * 128) },
    /shape is \[385, 64\], expected \[384, 64\]/,
  ],
  ["missing", "model.layers.2.self_attn.k_proj.bias", undefined, /is missing, expected \[32\]/],
  [
    "missing",
    "model.layers.0.mlp.shared_expert_gate.weight",
    undefined,
    /is missing, expected \[1, 64\]/,
  ],
  ["missing", "model.embed_tokens.weight", undefined, /is missing, expected \[384, 64\]/],
];

for (const [what, name, change, message] of wrongTensors) {
  test(`${name} that is ${what} is refused by name, value and expectation`, async (t) => {
    const dir = await goldenWith(t, (tensors) => {
      if (change) tensors.set(name, { ...golden.get(name)!, ...change });
      else tensors.delete(name);
    });
    await assert.rejects(openCheckpoint(dir), (error) => {
      assert.ok(error instanceof CheckpointError, String(error));
      assert.ok(error.message.includes(`tensor ${name}`), error.message);
      assert.match(error.message, message);
      return true;
    });
  });
}

test("tensors that the config does not ask for are listed, readable and harmless", async (t) => {
  const dir = await goldenWith(t, (tensors) => {
    tensors.set("extra.f32", { dtype: "F32", shape: [2], data: new Uint8Array(8).fill(9) });
    tensors.set("extra.i64", { dtype: "I64", shape: [1], data: new Uint8Array(8) });
  });
  const checkpoint = await openForTest(t, dir);
  assert.deepEqual(checkpoint.unexpectedTensors, ["extra.f32", "extra.i64"]);
  assert.deepEqual(
    (await checkpoint.read(named("extra.f32", [2]))).bytes,
    new Uint8Array(8).fill(9),
  );
  await assert.rejects(checkpoint.read(named("extra.i64", [1])), /extra\.i64: dtype is I64/);
  await assert.rejects(checkpoint.read(named("absent")), CheckpointError);
});

test("a checkpoint is known by its content: layout and key order do not change its hash", async (t) => {
  const original = await hashOf(goldenDir);
  const reversed = await goldenWith(t, (tensors) => {
    const entries = [...tensors].reverse();
    tensors.clear();
    for (const [name, tensor] of entries) tensors.set(name, tensor);
  });
  const raw = JSON.parse(await readFile(join(reversed, "config.json"), "utf8")) as object;
  const entries = Object.entries(raw).reverse();
  await writeFile(join(reversed, "config.json"), JSON.stringify(Object.fromEntries(entries)));
  assert.equal(await hashOf(reversed), original);
});

test("another model, a fine-tuned twin and another config have other hashes", async (t) => {
  const tuned = await goldenWith(t, (tensors) => {
    for (const [name, tensor] of tensors) {
      // The lowest bit of each bf16: the smallest change that training can make.
      const data = tensor.data.map((byte, i) => (i % 2 === 0 ? byte ^ 1 : byte));
      tensors.set(name, { ...tensor, data });
    }
  });
  const hashes = [
    await hashOf(goldenDir),
    await hashOf(demoDir),
    await hashOf(tuned),
    await hashOf(await copyModel(t, goldenDir, { rope_theta: 10_000 })),
    await hashOf(await copyModel(t, goldenDir, { num_experts_per_tok: 2 })),
    await hashOf(
      await goldenWith(t, (tensors) =>
        tensors.set("x", { dtype: "U8", shape: [0], data: new Uint8Array(0) }),
      ),
    ),
  ];
  assert.equal(new Set(hashes).size, hashes.length);
});

test("a checkpoint whose file shrinks, or that is closed, fails to read", async (t) => {
  const dir = await copyModel(t, goldenDir);
  const checkpoint = await openCheckpoint(dir);
  await truncate(join(dir, "model.safetensors"), 30_000);
  await assert.rejects(checkpoint.read(named("model.norm.weight")), SafetensorsError);
  await checkpoint.close();
  await assert.rejects(checkpoint.read(named("lm_head.weight")));
});

test("a config nested without end is refused", async (t) => {
  const dir = await copyModel(t, goldenDir);
  const text = await readFile(join(dir, "config.json"), "utf8");
  const deep = `${"[".repeat(100_000)}${"]".repeat(100_000)}`;
  await writeFile(join(dir, "config.json"), text.replace("{", `{"deep":${deep},`));
  await assert.rejects(openCheckpoint(dir), /config\.json is nested deeper than 64/);
  await writeFile(join(dir, "config.json"), text.replace("{", `{"rope_scaling":${deep},`));
  await assert.rejects(openCheckpoint(dir), /rope_scaling/);
});
