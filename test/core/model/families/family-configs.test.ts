// Configs of the families: what published models read as, class defaults, and what is refused.
import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";

import { readSyntheticConfig } from "../../../../bench/synthetic/command.ts";
import type {
  HeadsAttention,
  LatentAttention,
  ModelConfig,
} from "../../../../core/model/config.ts";
import { parseModelConfig, readRawConfig } from "../../../../core/model/load-config.ts";

type Raw = Readonly<Record<string, unknown>>;

function parse(raw: Raw): ModelConfig {
  return parseModelConfig(JSON.parse(JSON.stringify(raw)) as Raw, "config.json");
}

async function published(name: string, changes: Raw = {}): Promise<ModelConfig> {
  return parse({ ...(await readSyntheticConfig(name)).raw, ...changes });
}

function golden(family: string): Promise<Raw> {
  return readRawConfig(join(import.meta.dirname, "../../../goldens", family));
}

function heads({ attention }: ModelConfig): HeadsAttention {
  assert.ok(attention.kind === "heads");
  return attention;
}

function latent({ attention }: ModelConfig): LatentAttention {
  assert.ok(attention.kind === "latent");
  return attention;
}

/** Of the reference: 1 + 0.1 · mscale · ln(factor). */
const mscale = (factor: number, scale = 1) => 1 + 0.1 * scale * Math.log(factor);

test("deepseek-moe-16b has plain attention, two shared experts as one, and a dense first layer", async () => {
  const config = await published("deepseek-moe-16b");
  assert.deepEqual(config.layers.slice(0, 3), ["dense", "moe", "moe"]);
  assert.deepEqual(config.sharedExpert, { intermediateSize: 2816, gated: false });
  assert.equal(config.denseIntermediateSize, 10944);
  assert.deepEqual(heads(config), {
    kind: "heads",
    numHeads: 16,
    numKvHeads: 16,
    headDim: 128,
    scale: 128 ** -0.5,
    qkvBias: false,
    outputBias: false,
    qkNorm: "none",
    sinks: false,
    windows: Array.from({ length: 28 }, () => undefined),
  });
  const rope = { dim: 128, theta: 10000, interleaved: false, magnitude: 1 };
  assert.deepEqual(config.rope, rope);
  assert.equal(config.gate.normTopkProb, false);
});

test("DeepSeek-V2-Lite projects the query at once, and YaRN's mscale² scales its scores", async () => {
  const config = await published("deepseek-v2-lite");
  const { scale, qLoraRank, ...sizes } = latent(config);
  assert.equal(qLoraRank, undefined);
  // 1.5896 = mscale², as the reference has it.
  assert.ok(Math.abs(scale * 192 ** 0.5 - 1.5896) < 1e-4, `${scale}`);
  assert.deepEqual(sizes, {
    kind: "latent",
    numHeads: 16,
    kvLoraRank: 512,
    nopeDim: 128,
    ropeDim: 64,
    valueDim: 128,
    normEps: 1e-6,
  });
  assert.deepEqual(config.rope, {
    dim: 64,
    theta: 10000,
    interleaved: true,
    yarn: { factor: 40, originalPositions: 4096, betaFast: 32, betaSlow: 1, truncate: true },
    magnitude: 1,
  });
  assert.equal(config.gate.groups, undefined);
  assert.equal(config.gate.scaling, 1);
});

test("DeepSeek-V2 chooses from three of eight groups by their highest score, and scales by 16", async () => {
  const { gate, attention } = await published("deepseek-v2");
  assert.deepEqual(gate, {
    score: "softmax",
    bias: false,
    correction: false,
    groups: { numGroups: 8, topGroups: 3, rank: "highest" },
    normTopkProb: false,
    scaling: 16,
  });
  assert.equal(attention.kind === "latent" && attention.qLoraRank, 1536);
  const divided = await published("deepseek-v2", { norm_topk_prob: true });
  assert.deepEqual([divided.gate.normTopkProb, divided.gate.scaling], [true, 1]);
  const single = await published("deepseek-v2", { norm_topk_prob: true, num_experts_per_tok: 1 });
  assert.deepEqual([single.gate.normTopkProb, single.gate.scaling], [false, 16]);
});

test("DeepSeek-V3 has a corrected sigmoid gate, and FP8 weights", async () => {
  const config = await published("deepseek-v3");
  assert.deepEqual(config.gate, {
    score: "sigmoid",
    bias: false,
    correction: true,
    groups: { numGroups: 8, topGroups: 4, rank: "sumOfTwo" },
    normTopkProb: true,
    scaling: 2.5,
  });
  assert.equal(config.quantization, "fp8");
  // 1.8739 = mscale², as the reference has it.
  assert.ok(Math.abs(latent(config).scale * 192 ** 0.5 - 1.8739) < 1e-4);
  assert.deepEqual(config.layers.slice(2, 4), ["dense", "moe"]);
  assert.equal(
    (await published("deepseek-v3", { rope_interleave: false })).rope.interleaved,
    false,
  );
});

test("Kimi-K2 is a DeepSeek-V3 of one group", async () => {
  const config = await published("kimi-k2");
  assert.equal(config.modelType, "deepseek_v3");
  assert.equal(config.gate.groups, undefined);
  assert.equal(config.gate.scaling, 2.827);
  assert.deepEqual(config.rope.yarn, {
    factor: 32,
    originalPositions: 4096,
    betaFast: 1,
    betaSlow: 1,
    truncate: true,
  });
  assert.ok(Math.abs(latent(config).scale * 192 ** 0.5 - mscale(32) ** 2) < 1e-12);
});

test("Qwen1.5-MoE has biased q, k and v and a gated shared expert; Qwen3-30B normed heads of 128", async () => {
  const qwen2 = await published("qwen1.5-moe-a2.7b");
  assert.deepEqual([heads(qwen2).qkvBias, heads(qwen2).outputBias], [true, false]);
  assert.deepEqual(qwen2.sharedExpert, { intermediateSize: 5632, gated: true });
  assert.equal(qwen2.gate.normTopkProb, false);
  const qwen3 = await published("qwen3-30b-a3b");
  const { qkNorm, headDim, scale, qkvBias } = heads(qwen3);
  assert.deepEqual([qkNorm, headDim, scale, qkvBias], ["head", 128, 128 ** -0.5, false]);
  assert.equal(qwen3.sharedExpert, undefined);
  assert.equal(qwen3.gate.normTopkProb, true);
  assert.equal(
    (await published("qwen3-30b-a3b", { norm_topk_prob: null })).gate.normTopkProb,
    false,
  );
});

test("Mixtral divides top-k weights whatever its config says, and can have a window", async () => {
  const config = await published("mixtral-8x7b", { norm_topk_prob: false, rope_theta: null });
  assert.equal(config.gate.normTopkProb, true);
  assert.equal(config.rope.theta, 1e6);
  assert.equal(config.expertIntermediateSize, 14336);
  assert.equal(heads(config).windows[31], undefined);
  const early = await published("mixtral-8x7b", { sliding_window: 4096 });
  assert.deepEqual(new Set(heads(early).windows), new Set([4096]));
});

test("OLMoE norms whole projections, and clamps them where its config says so", async () => {
  const config = await published("olmoe-1b-7b");
  assert.deepEqual([heads(config).qkNorm, heads(config).clipQkv], ["whole", undefined]);
  assert.equal(config.gate.normTopkProb, false);
  assert.equal(heads(await published("olmoe-1b-7b", { clip_qkv: 8 })).clipQkv, 8);
});

test("granite-3.1 has four multipliers; the class's are 1", async () => {
  const config = await published("granite-3.1-1b-a400m");
  assert.equal(heads(config).scale, 0.015625);
  assert.deepEqual(config.multipliers, { embedding: 12, residual: 0.22, logits: 1 / 6 });
  assert.deepEqual([config.gate.normTopkProb, config.tieWordEmbeddings], [true, true]);
  const plain = await published("granite-3.1-1b-a400m", {
    attention_multiplier: null,
    embedding_multiplier: null,
    residual_multiplier: null,
    logits_scaling: null,
  });
  assert.equal(heads(plain).scale, 1);
  assert.deepEqual(plain.multipliers, { embedding: 1, residual: 1, logits: 1 });
});

test("gpt-oss has sinks, biases, windows in turns, YaRN and a clamped activation", async () => {
  const config = await published("gpt-oss-20b");
  const { sinks, qkvBias, outputBias, windows, headDim } = heads(config);
  assert.deepEqual([sinks, qkvBias, outputBias, headDim], [true, true, true, 64]);
  assert.deepEqual(windows.slice(0, 3), [128, undefined, 128]);
  assert.deepEqual(config.activation, { kind: "clampedSwiglu", alpha: 1.702, limit: 7 });
  assert.deepEqual(
    [config.expertBias, config.gate.bias, config.quantization],
    [true, true, "mxfp4"],
  );
  const yarn = { factor: 32, originalPositions: 4096, betaFast: 32, betaSlow: 1, truncate: false };
  assert.deepEqual(config.rope.yarn, yarn);
  assert.ok(Math.abs(config.rope.magnitude - mscale(32)) < 1e-12);
  assert.deepEqual(
    await published("gpt-oss-20b", {
      layer_types: undefined,
      rope_scaling: undefined,
      sliding_window: undefined,
      swiglu_limit: undefined,
      head_dim: undefined,
      rope_theta: undefined,
    }),
    config,
  );
});

test("the rope_parameters of transformers 5 read as the rope_theta and rope_scaling before them", async () => {
  for (const name of ["deepseek-v3", "gpt-oss-20b", "deepseek-v2-lite", "mixtral-8x7b"]) {
    const {
      rope_theta: theta,
      rope_scaling: scaling,
      ...raw
    } = (await readSyntheticConfig(name)).raw;
    const type = scaling ? "yarn" : "default";
    const rope_parameters = { ...(scaling as object), rope_theta: theta, rope_type: type };
    const older = await published(name);
    assert.deepEqual(parse({ ...raw, rope_parameters }), older);
    assert.deepEqual(parse({ ...raw, rope_parameters, rope_scaling: scaling }), older);
  }
});

test("YaRN that a user adds to a config takes the reference's magnitude", async () => {
  const rope = { rope_type: "yarn", factor: 4, original_max_position_embeddings: 32768 };
  const config = await published("qwen3-30b-a3b", { rope_scaling: rope });
  assert.equal(config.rope.yarn?.originalPositions, 32768);
  assert.ok(Math.abs(config.rope.magnitude - mscale(4)) < 1e-12);
  const given = { ...rope, attention_factor: 1.5, original_max_position_embeddings: null };
  const own = await published("qwen3-30b-a3b", { rope_scaling: given });
  assert.equal(own.rope.magnitude, 1.5);
  assert.equal(own.rope.yarn?.originalPositions, 40960);
});

test("the number of experts goes by any of its three names", async () => {
  for (const [family, name] of [
    ["qwen3_moe", "num_experts"],
    ["mixtral", "num_local_experts"],
    ["deepseek_v3", "n_routed_experts"],
  ]) {
    const raw = await golden(family);
    const { [name]: count, ...rest } = raw;
    for (const other of ["num_experts", "num_local_experts", "n_routed_experts"]) {
      assert.deepEqual(parse({ ...rest, [other]: count }), parse(raw));
      if (other === name) continue;
      assert.throws(
        () => parse({ ...raw, [other]: 2 }),
        new RegExp(`${other} is 2, expected the same`),
      );
    }
  }
});

test("the number of KV heads is the class's where it is absent, and that of heads where it is null", async () => {
  for (const [family, whenAbsent] of [
    ["qwen2_moe", 16],
    ["qwen3_moe", 4],
    ["mixtral", 8],
    ["gpt_oss", 8],
    ["olmoe", 32],
    ["granitemoe", 32],
    ["deepseek", 32],
  ] as const) {
    const raw = { ...(await golden(family)), num_attention_heads: 32, hidden_size: 512 };
    assert.equal(heads(parse({ ...raw, num_key_value_heads: undefined })).numKvHeads, whenAbsent);
    assert.equal(heads(parse({ ...raw, num_key_value_heads: null })).numKvHeads, 32);
  }
});

test("keys that do not matter for what a model computes pass", async () => {
  for (const family of ["deepseek_v3", "gpt_oss", "mixtral"]) {
    const raw = await golden(family);
    const more = { _name_or_path: "x", dtype: "bfloat16", auto_map: {}, router_jitter_noise: 0.1 };
    assert.deepEqual(parse({ ...raw, ...more }), parse(raw));
  }
});
