import assert from "node:assert/strict";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";

import { ModelConfigError } from "../../../core/model/config-error.ts";
import { moeLayers } from "../../../core/model/config.ts";
import { expectedTensors } from "../../../core/model/families/families.ts";
import { JsonFileError } from "../../../core/model/checkpoint/json-file.ts";
import {
  parseModelConfig,
  readGenerationConfig,
  readModelConfig,
} from "../../../core/model/load-config.ts";
import { temporaryDir } from "./checkpoint/safetensors-writer.ts";

const demoDir = join(import.meta.dirname, "../../../models/demo-moe");
const goldenDir = join(import.meta.dirname, "../../goldens/qwen2_moe");

const golden = JSON.parse(await readFile(join(goldenDir, "config.json"), "utf8")) as Record<
  string,
  unknown
>;

function parse(changes: Record<string, unknown>) {
  const raw = { ...golden, ...changes };
  return parseModelConfig(JSON.parse(JSON.stringify(raw)) as typeof golden, "config.json");
}

test("the golden model's config.json reads with its sizes and Hugging Face's defaults", async () => {
  assert.deepEqual(await readModelConfig(goldenDir), {
    modelType: "qwen2_moe",
    vocabSize: 384,
    hiddenSize: 64,
    numLayers: 3,
    layers: ["moe", "moe", "moe"],
    attention: {
      kind: "heads",
      numHeads: 4,
      numKvHeads: 2,
      headDim: 16,
      scale: 0.25,
      qkvBias: true,
      outputBias: false,
      qkNorm: "none",
      sinks: false,
      windows: [undefined, undefined, undefined],
    },
    rope: { dim: 16, theta: 1_000_000, interleaved: false, magnitude: 1 },
    maxPositions: 512,
    rmsNormEps: 1e-6,
    tieWordEmbeddings: false,
    gate: { score: "softmax", bias: false, correction: false, normTopkProb: false, scaling: 1 },
    numExperts: 12,
    numExpertsPerToken: 4,
    expertIntermediateSize: 40,
    activation: { kind: "silu" },
    expertBias: false,
    sharedExpert: { intermediateSize: 112, gated: true },
    denseIntermediateSize: 0,
    multipliers: { embedding: 1, residual: 1, logits: 1 },
  });
});

test("options that are absent or null take Hugging Face's defaults", () => {
  for (const absent of [undefined, null]) {
    const config = parse({
      rope_theta: absent,
      rms_norm_eps: absent,
      max_position_embeddings: absent,
      tie_word_embeddings: absent,
      qkv_bias: absent,
      norm_topk_prob: absent,
      decoder_sparse_step: absent,
      mlp_only_layers: absent,
      hidden_act: absent,
      rope_scaling: absent,
      use_sliding_window: absent,
    });
    assert.equal(config.rope.theta, 10000);
    assert.equal(config.rmsNormEps, 1e-6);
    assert.equal(config.maxPositions, 32768);
    assert.equal(config.tieWordEmbeddings, false);
    assert.ok(config.attention.kind === "heads" && config.attention.qkvBias);
    assert.equal(config.gate.normTopkProb, false);
    assert.deepEqual(moeLayers(config), [0, 1, 2]);
  }
});

test("dense layers are those of mlp_only_layers and those off the sparse step", () => {
  const layers = (changes: Record<string, unknown>) =>
    parse({ num_hidden_layers: 6, ...changes }).layers.map((kind) => kind[0]);
  assert.deepEqual(layers({ mlp_only_layers: [0, 5] }), ["d", "m", "m", "m", "m", "d"]);
  assert.deepEqual(layers({ decoder_sparse_step: 2 }), ["d", "m", "d", "m", "d", "m"]);
  assert.deepEqual(layers({ decoder_sparse_step: 2, mlp_only_layers: [3] }), [
    "d",
    "m",
    "d",
    "d",
    "d",
    "m",
  ]);
});

test("rope_parameters of newer files give rope_theta", () => {
  const config = parse({
    rope_theta: undefined,
    rope_parameters: { rope_type: "default", rope_theta: 5e5 },
  });
  assert.equal(config.rope.theta, 5e5);
});

const refused: [Record<string, unknown>, string][] = [
  [{ model_type: "llama" }, "model_type"],
  [{ model_type: undefined }, "model_type"],
  [{ hidden_act: "gelu" }, "hidden_act"],
  [{ rope_scaling: { type: "linear", factor: 4 } }, "rope_scaling.type"],
  [{ rope_parameters: { rope_theta: 1e6, rope_type: "llama3" } }, "rope_parameters.rope_type"],
  [
    { rope_parameters: { rope_theta: 1e6, partial_rotary_factor: 0.5 } },
    "rope_parameters.partial_rotary_factor",
  ],
  [{ use_sliding_window: true }, "use_sliding_window"],
  [{ layer_types: ["full_attention", "sliding_attention", "full_attention"] }, "layer_types"],
  [{ attention_bias: true }, "attention_bias"],
  [{ quantization_config: { quant_method: "gptq" } }, "quantization_config"],
  [{ vocab_size: 0 }, "vocab_size"],
  [{ vocab_size: 1e300 }, "vocab_size"],
  [{ vocab_size: "384" }, "vocab_size"],
  [{ hidden_size: 60 }, "hidden_size"],
  [{ hidden_size: undefined }, "hidden_size"],
  [{ num_hidden_layers: -1 }, "num_hidden_layers"],
  [{ num_hidden_layers: 2.5 }, "num_hidden_layers"],
  [{ num_attention_heads: 16 }, "head_dim"],
  [{ num_key_value_heads: 3 }, "num_key_value_heads"],
  [{ head_dim: 12 }, "head_dim"],
  [{ moe_intermediate_size: 44 }, "moe_intermediate_size"],
  [{ moe_intermediate_size: 0 }, "moe_intermediate_size"],
  [{ shared_expert_intermediate_size: 4 }, "shared_expert_intermediate_size"],
  [{ num_experts_per_tok: 13 }, "num_experts_per_tok"],
  [{ num_experts: 65536 }, "num_experts"],
  [{ num_experts: 65535, num_hidden_layers: 1024 }, "num_experts"],
  [{ num_experts: 0 }, "num_experts"],
  [{ rope_theta: 0 }, "rope_theta"],
  [{ rms_norm_eps: -1 }, "rms_norm_eps"],
  [{ norm_topk_prob: "yes" }, "norm_topk_prob"],
  [{ mlp_only_layers: 3 }, "mlp_only_layers"],
];

for (const [changes, name] of refused) {
  test(`config.json with ${JSON.stringify(changes)} is refused by name, value and expectation`, () => {
    assert.throws(
      () => parse(changes),
      (error) => {
        assert.ok(error instanceof ModelConfigError);
        assert.deepEqual([...new Set(error.problems.map((problem) => problem.name))], [name]);
        const value = Object.hasOwn(changes, name) ? JSON.stringify(changes[name]) : undefined;
        assert.ok(error.message.includes(`${name} is ${value ?? ""}`), error.message);
        assert.match(error.message, /^config\.json: .*, expected /);
        return true;
      },
    );
  });
}

test("every problem of a config.json is listed at once", () => {
  assert.throws(
    () => parse({ hidden_act: "gelu", vocab_size: -1, use_sliding_window: true }),
    (error) => {
      assert.ok(error instanceof ModelConfigError);
      const names = error.problems.map((problem) => problem.name).sort();
      assert.deepEqual(names, ["hidden_act", "use_sliding_window", "vocab_size"]);
      return true;
    },
  );
});

test("dense layers, missing biases and a tied head change the tensors that are asked for", () => {
  const names = [
    ...expectedTensors(
      parse({
        mlp_only_layers: [1],
        qkv_bias: false,
        tie_word_embeddings: true,
        shared_expert_intermediate_size: 0,
      }),
    ).keys(),
  ];
  assert.ok(names.includes("model.layers.1.mlp.gate_proj.weight"));
  assert.ok(!names.some((name) => name.startsWith("model.layers.1.mlp.experts.")));
  assert.ok(names.includes("model.layers.2.mlp.experts.11.down_proj.weight"));
  assert.ok(!names.some((name) => /bias|lm_head|shared_expert/.test(name)));
});

test("a missing, broken or non-object config.json is an error that names the file", async (t) => {
  const dir = await temporaryDir(t);
  const isNamed = (error: unknown) =>
    error instanceof JsonFileError && error.message.includes(join(dir, "config.json"));
  await assert.rejects(readModelConfig(dir), isNamed);
  for (const text of ["", "{", "[]", "null", '"x"', "\xff\xfe"]) {
    await writeFile(join(dir, "config.json"), Buffer.from(text, "latin1"));
    await assert.rejects(readModelConfig(dir), isNamed);
  }
});

test("generation_config.json gives the sampling defaults and end-of-sequence ids", async () => {
  const config = await readModelConfig(demoDir);
  assert.deepEqual(await readGenerationConfig(demoDir, config), {
    eosTokenIds: [config.vocabSize - 3, config.vocabSize - 1],
    maxNewTokens: 256,
    temperature: 0.8,
    topP: 0.95,
    topK: 50,
    minP: undefined,
    repetitionPenalty: undefined,
  });
});

test("without generation_config.json the end-of-sequence id is that of config.json", async () => {
  const generation = await readGenerationConfig(goldenDir, await readModelConfig(goldenDir));
  assert.deepEqual(generation.eosTokenIds, [1]);
  assert.equal(generation.temperature, undefined);
});

test("generation_config.json is read as Hugging Face writes it, and checked", async (t) => {
  const dir = await temporaryDir(t);
  const config = parse({});
  await writeFile(join(dir, "config.json"), JSON.stringify(golden));
  const read = async (raw: unknown) => {
    await writeFile(join(dir, "generation_config.json"), JSON.stringify(raw));
    return readGenerationConfig(dir, config);
  };
  assert.equal((await read({ do_sample: false, temperature: 0.7 })).temperature, 0);
  assert.equal((await read({ temperature: 0.7 })).temperature, 0.7);
  assert.equal((await read({ top_k: -1 })).topK, 0);
  assert.deepEqual((await read({ eos_token_id: 7 })).eosTokenIds, [7]);
  assert.deepEqual((await read({ eos_token_id: [] })).eosTokenIds, []);
  assert.deepEqual((await read({ top_p: null })).eosTokenIds, [1]);
  const wrong: [string, unknown][] = [
    ["top_p", 1.5],
    ["temperature", -1],
    ["temperature", "hot"],
    ["top_k", 1.5],
    ["min_p", 2],
    ["repetition_penalty", 0],
    ["max_new_tokens", 0],
    ["eos_token_id", "x"],
    ["eos_token_id", 384],
  ];
  for (const [name, value] of wrong) {
    await assert.rejects(read({ [name]: value }), (error) => {
      assert.ok(error instanceof ModelConfigError);
      assert.deepEqual([error.problems[0].name, error.problems[0].value], [name, value]);
      assert.match(error.message, /generation_config\.json: /);
      return true;
    });
  }
});
