/**
 * Qwen2-MoE (Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B): biased q/k/v, softmax over all experts before top-k, a shared expert
 * behind a sigmoid gate. Names and defaults are those of Hugging Face's `Qwen2MoeConfig` and `Qwen2MoeForCausalLM`.
 */

import { z } from "zod";

import { type HeadsAttention, type LayerKind, type ModelConfig, NO_MULTIPLIERS } from "./config.ts";
import { type ConfigProblem, zodProblems } from "./config-error.ts";
import type { JsonObject } from "./json-file.ts";
import type { FfnSources, ModelFamily, TensorSource } from "./model-family.ts";

/** Largest value of one size: far above real models, and small enough that products of three stay exact. */
const MAX_SIZE = 2 ** 24;
/** Experts are u16 on the wire, and 65535 means none. */
const MAX_EXPERTS = 65535;
const MAX_LAYERS = 1024;
/** The kernels read rows as vec4 of f16 pairs. */
const SIZE_STEP = 8;

const FLAG = "true or false";

const configSchema = z.object({
  vocab_size: integer(1, MAX_SIZE),
  hidden_size: stepped(SIZE_STEP),
  num_hidden_layers: integer(1, MAX_LAYERS),
  num_attention_heads: integer(1, 65535),
  num_key_value_heads: integer(1, 65535),
  head_dim: integer(1, MAX_SIZE).nullish(),
  max_position_embeddings: integer(1, MAX_SIZE).default(32768),
  rms_norm_eps: positive().default(1e-6),
  rope_theta: positive().nullish(),
  qkv_bias: z.boolean({ error: FLAG }).default(true),
  tie_word_embeddings: z.boolean({ error: FLAG }).default(false),
  hidden_act: z.literal("silu", { error: '"silu"' }).default("silu"),
  intermediate_size: stepped(SIZE_STEP),
  moe_intermediate_size: stepped(SIZE_STEP),
  shared_expert_intermediate_size: stepped(0),
  num_experts: integer(1, MAX_EXPERTS),
  num_experts_per_tok: integer(1, MAX_EXPERTS),
  norm_topk_prob: z.boolean({ error: FLAG }).default(false),
  decoder_sparse_step: integer(1, MAX_LAYERS).default(1),
  mlp_only_layers: z
    .array(z.int(), { error: "a list of layer indices" })
    .nullish()
    .transform((layers) => layers ?? []),
});

function integer(min: number, max: number) {
  const error = `an integer from ${min} to ${max}`;
  return z.int({ error }).min(min, { error }).max(max, { error });
}

/** A size that is a multiple of SIZE_STEP. */
function stepped(min: number) {
  const error = `a multiple of ${SIZE_STEP} from ${min} to ${MAX_SIZE}`;
  return z.int({ error }).min(min, { error }).max(MAX_SIZE, { error }).multipleOf(SIZE_STEP, {
    error,
  });
}

function positive() {
  const error = "a number above 0";
  return z.number({ error }).positive({ error });
}

function parseConfig(
  raw: JsonObject,
): { readonly config: ModelConfig } | { readonly problems: readonly ConfigProblem[] } {
  // Hugging Face writes null where an option is left at its default.
  const set = Object.fromEntries(Object.entries(raw).filter(([, value]) => value !== null));
  const unsupported = unsupportedOptions(set);
  const parsed = configSchema.safeParse(set);
  if (!parsed.success) return { problems: [...unsupported, ...zodProblems(parsed.error, raw)] };
  const config = toModelConfig(parsed.data, ropeThetaOf(set));
  const problems = [...unsupported, ...contradictions(config)];
  return problems.length > 0 ? { problems } : { config };
}

function toModelConfig(
  fields: z.output<typeof configSchema>,
  newerRopeTheta: number | undefined,
): ModelConfig {
  const layers = Array.from({ length: fields.num_hidden_layers }, (_, layer): LayerKind => {
    const sparse = (layer + 1) % fields.decoder_sparse_step === 0;
    return sparse && !fields.mlp_only_layers.includes(layer) ? "moe" : "dense";
  });
  const headDim = fields.head_dim ?? Math.floor(fields.hidden_size / fields.num_attention_heads);
  return {
    modelType: "qwen2_moe",
    vocabSize: fields.vocab_size,
    hiddenSize: fields.hidden_size,
    numLayers: fields.num_hidden_layers,
    layers,
    attention: {
      kind: "heads",
      numHeads: fields.num_attention_heads,
      numKvHeads: fields.num_key_value_heads,
      headDim,
      scale: headDim ** -0.5,
      qkvBias: fields.qkv_bias,
      outputBias: false,
      qkNorm: "none",
      sinks: false,
      windows: layers.map(() => undefined),
    },
    rope: {
      dim: headDim,
      theta: newerRopeTheta ?? fields.rope_theta ?? 10000,
      interleaved: false,
      magnitude: 1,
    },
    maxPositions: fields.max_position_embeddings,
    rmsNormEps: fields.rms_norm_eps,
    tieWordEmbeddings: fields.tie_word_embeddings,
    gate: {
      score: "softmax",
      bias: false,
      correction: false,
      normTopkProb: fields.norm_topk_prob,
      scaling: 1,
    },
    numExperts: fields.num_experts,
    numExpertsPerToken: fields.num_experts_per_tok,
    expertIntermediateSize: fields.moe_intermediate_size,
    activation: { kind: "silu" },
    expertBias: false,
    ...(fields.shared_expert_intermediate_size > 0 && {
      sharedExpert: { intermediateSize: fields.shared_expert_intermediate_size, gated: true },
    }),
    denseIntermediateSize: layers.includes("dense") ? fields.intermediate_size : 0,
    multipliers: NO_MULTIPLIERS,
  };
}

/** `rope_theta` of the `rope_parameters` that newer versions of transformers write. */
function ropeThetaOf(raw: JsonObject): number | undefined {
  const parsed = z.object({ rope_theta: positive() }).safeParse(raw.rope_parameters);
  return parsed.success ? parsed.data.rope_theta : undefined;
}

const plainRope = z.object({
  rope_theta: positive().optional(),
  type: z.literal("default").optional(),
  rope_type: z.literal("default").optional(),
  partial_rotary_factor: z.literal(1).optional(),
});

/** Options that change what the model computes, and that the engine does not compute. */
function unsupportedOptions(raw: JsonObject): ConfigProblem[] {
  const problems: ConfigProblem[] = [];
  const refuse = (name: string, supported: (value: unknown) => boolean, expectation: string) => {
    const value = raw[name];
    if (value !== undefined && !supported(value)) problems.push({ name, value, expectation });
  };
  const isPlainRope = (value: unknown) => plainRope.safeParse(value).success;
  const isFalse = (value: unknown) => value === false;
  const isNever = () => false;
  refuse("rope_scaling", isPlainRope, "null: RoPE scaling is not supported");
  refuse("rope_parameters", isPlainRope, 'rope_type "default" over the whole head');
  refuse("partial_rotary_factor", (value) => value === 1, "1");
  refuse("use_sliding_window", isFalse, "false: sliding windows are not supported");
  refuse(
    "layer_types",
    (value) => Array.isArray(value) && value.every((kind) => kind === "full_attention"),
    'only "full_attention"',
  );
  refuse("attention_bias", isFalse, "false: the output projection has no bias");
  refuse("attn_logit_softcapping", isNever, "null: soft-capping is not supported");
  refuse("final_logit_softcapping", isNever, "null: soft-capping is not supported");
  refuse("quantization_config", isNever, "null: quantized checkpoints are not supported");
  refuse("compression_config", isNever, "null: quantized checkpoints are not supported");
  return problems;
}

/** Values that can not stand together. */
function contradictions(config: ModelConfig): ConfigProblem[] {
  const problems: ConfigProblem[] = [];
  const require = (holds: boolean, name: string, value: unknown, expectation: string) => {
    if (!holds) problems.push({ name, value, expectation });
  };
  const { numExperts, numExpertsPerToken } = config;
  const { numHeads, numKvHeads, headDim } = headsOf(config);
  require(headDim % SIZE_STEP ===
    0, "head_dim", headDim, `a multiple of ${SIZE_STEP} (hidden_size / num_attention_heads where it is not given)`);
  require(numHeads % numKvHeads ===
    0, "num_key_value_heads", numKvHeads, `a divisor of num_attention_heads ${numHeads}`);
  require(numExpertsPerToken <=
    numExperts, "num_experts_per_tok", numExpertsPerToken, `at most num_experts ${numExperts}`);
  require(config.numLayers * numExperts <=
    1_000_000, "num_experts", numExperts, "at most 1000000 experts in all layers together");
  require(numHeads * headDim <=
    MAX_SIZE, "num_attention_heads", numHeads, `num_attention_heads · head_dim at most ${MAX_SIZE}`);
  return problems;
}

function headsOf(config: ModelConfig): HeadsAttention {
  if (config.attention.kind !== "heads") throw new TypeError("Qwen2-MoE has attention per head");
  return config.attention;
}

function source(name: string, ...shape: readonly number[]): TensorSource {
  return { name, shape };
}

/** Tensors of a gated FFN of a width below a prefix. */
function ffnSources(config: ModelConfig, prefix: string, width: number): FfnSources {
  return {
    gate: source(`${prefix}.gate_proj.weight`, width, config.hiddenSize),
    up: source(`${prefix}.up_proj.weight`, width, config.hiddenSize),
    down: source(`${prefix}.down_proj.weight`, config.hiddenSize, width),
  };
}

/** The Qwen2-MoE family. */
export const qwen2Moe: ModelFamily = {
  modelType: "qwen2_moe",
  parseConfig,
  modelSources: ({ vocabSize, hiddenSize, tieWordEmbeddings }) => {
    const embedding = source("model.embed_tokens.weight", vocabSize, hiddenSize);
    return {
      embedding,
      finalNorm: source("model.norm.weight", hiddenSize),
      lmHead: tieWordEmbeddings ? embedding : source("lm_head.weight", vocabSize, hiddenSize),
    };
  },
  attentionSources: (config, layer) => {
    const prefix = `model.layers.${layer}`;
    const { hiddenSize } = config;
    const { numHeads, numKvHeads, headDim, qkvBias } = headsOf(config);
    const projection = (name: string, heads: number) => ({
      weight: source(`${prefix}.self_attn.${name}.weight`, heads * headDim, hiddenSize),
      ...(qkvBias && { bias: source(`${prefix}.self_attn.${name}.bias`, heads * headDim) }),
    });
    return {
      inputNorm: source(`${prefix}.input_layernorm.weight`, hiddenSize),
      attention: {
        kind: "heads",
        q: projection("q_proj", numHeads),
        k: projection("k_proj", numKvHeads),
        v: projection("v_proj", numKvHeads),
        o: {
          weight: source(`${prefix}.self_attn.o_proj.weight`, hiddenSize, numHeads * headDim),
        },
      },
      postAttentionNorm: source(`${prefix}.post_attention_layernorm.weight`, hiddenSize),
    };
  },
  moeSources: (config, layer) => {
    const prefix = `model.layers.${layer}.mlp`;
    const { numExperts, hiddenSize, sharedExpert } = config;
    return {
      gate: { weight: source(`${prefix}.gate.weight`, numExperts, hiddenSize) },
      ...(sharedExpert && {
        shared: ffnSources(config, `${prefix}.shared_expert`, sharedExpert.intermediateSize),
        sharedGate: source(`${prefix}.shared_expert_gate.weight`, 1, hiddenSize),
      }),
    };
  },
  expertSources: (config, layer, expert) =>
    ffnSources(
      config,
      `model.layers.${layer}.mlp.experts.${expert}`,
      config.expertIntermediateSize,
    ),
  denseSources: (config, layer) =>
    ffnSources(config, `model.layers.${layer}.mlp`, config.denseIntermediateSize),
};
