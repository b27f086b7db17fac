/** From a raw `config.json` to a ModelConfig: the steps that all families share. */

import { z } from "zod";

import { type DecoderFields, MAX_SIZE, SIZE_STEP, type decoderFields } from "./config-fields.ts";
import type { HeadsAttention, LatentAttention, ModelConfig, Quantization } from "../config.ts";
import { type ConfigProblem, zodProblems } from "../config-error.ts";
import { isJsonObject, type JsonObject } from "../checkpoint/json-file.ts";
import type { ParsedConfig } from "./model-family.ts";
import { readRope, type RopeFields, type RopeRules } from "./rope-fields.ts";

/** Values of a row that share a scale in MXFP4. */
const MXFP4_GROUP = 32;

type Fields = ReturnType<typeof decoderFields> & z.core.$ZodLooseShape;

/** How a family reads its `config.json`. */
export interface ConfigRules<Shape extends Fields> {
  /** What the family reads; an option that is not here is refused where it would change the result. */
  readonly fields: Shape;
  readonly rope: RopeRules;
  /** Encodings of checkpoints beside plain floats. */
  readonly quantizations: readonly Quantization[];
  /** The config that the fields say. */
  config(fields: z.output<z.ZodObject<Shape>>, rope: RopeFields): ModelConfig;
  /** What the family does not compute, beyond the options that none does. */
  problems?(fields: z.output<z.ZodObject<Shape>>): readonly ConfigProblem[];
}

/** Reads a config.json by a family's rules, or lists everything that is wrong with it. */
export function parseByRules<Shape extends Fields>(
  raw: JsonObject,
  rules: ConfigRules<Shape>,
): ParsedConfig {
  const given = withoutUnset(raw, rules.fields);
  const countName = EXPERT_COUNTS.find((name) => name in rules.fields) ?? EXPERT_COUNTS[0];
  const problems = [
    ...unsupportedOptions(given, rules.fields),
    ...contradictingCounts(given, countName),
  ];
  const quantization = readQuantization(given, rules.quantizations);
  if (quantization === "unknown") problems.push(unknownQuantization(given, rules.quantizations));
  const fields = z.object(rules.fields).safeParse(withCount(given, countName));
  if (!fields.success) problems.push(...zodProblems(fields.error, given));
  const decoder = fields.data as DecoderFields | undefined;
  const rope = readRope(given, rules.rope, decoder?.max_position_embeddings ?? MAX_SIZE);
  if ("problems" in rope) problems.push(...rope.problems);
  if (!fields.success || "problems" in rope || quantization === "unknown") return { problems };
  problems.push(...(rules.problems?.(fields.data) ?? []));
  const config = {
    ...rules.config(fields.data, rope.rope),
    ...(quantization !== undefined && { quantization }),
  };
  problems.push(...contradictions(config, countName), ...deniedOptions(given, config));
  return problems.length > 0 ? { problems } : { config };
}

/** The raw config without nulls: Hugging Face writes null where an option is left at its default, unless null is a value of it. */
function withoutUnset(raw: JsonObject, fields: Fields): JsonObject {
  const isSet = ([name, value]: [string, unknown]) =>
    value !== null || z.safeParse(fields[name] ?? z.never(), null).success;
  return Object.fromEntries(Object.entries(raw).filter(isSet));
}

/** Names of the number of experts; which of them a family writes differs between versions of transformers. */
const EXPERT_COUNTS = ["num_experts", "num_local_experts", "n_routed_experts"] as const;

/** The raw config with the number of experts under the family's own name. */
function withCount(raw: JsonObject, name: string): JsonObject {
  const other = EXPERT_COUNTS.find((other) => raw[other] !== undefined);
  if (raw[name] !== undefined || other === undefined) return raw;
  return { ...raw, [name]: raw[other] };
}

function contradictingCounts(raw: JsonObject, name: string): ConfigProblem[] {
  if (raw[name] === undefined) return [];
  return EXPERT_COUNTS.filter((other) => raw[other] !== undefined && raw[other] !== raw[name]).map(
    (other) => ({ name: other, value: raw[other], expectation: `the same as ${name}` }),
  );
}

const isFalse = (value: unknown) => value === false;
const isNever = () => false;

/** Options that change what a model computes, and what the engine takes of them where a family does not read them. */
const OPTIONS: Readonly<Record<string, readonly [(value: unknown) => boolean, string]>> = {
  attention_bias: [isFalse, "false: projections of attention have no such biases"],
  attention_chunk_size: [isNever, "null: attention in chunks is not supported"],
  attn_logit_softcapping: [isNever, "null: soft-capping is not supported"],
  clip_qkv: [isNever, "null: clipping is not supported"],
  compression_config: [isNever, "null: compressed checkpoints are not supported"],
  dual_chunk_attention_config: [isNever, "null: attention in chunks is not supported"],
  final_logit_softcapping: [isNever, "null: soft-capping is not supported"],
  layer_types: [
    (value) => Array.isArray(value) && value.every((kind) => kind === "full_attention"),
    'only "full_attention"',
  ],
  mlp_bias: [isFalse, "false: FFNs have no biases"],
  no_rope_layers: [
    (value) => Array.isArray(value) && value.every((turns) => turns === 1),
    "only 1: every layer has positions",
  ],
  partial_rotary_factor: [(value) => value === 1, "1: the whole head is turned"],
  position_embedding_type: [(value) => value === "rope", '"rope"'],
  quantization: [isNever, "null: checkpoints quantized so are not supported"],
  rotary_pct: [(value) => value === 1, "1: the whole head is turned"],
  scoring_func: [(value) => value === "softmax", '"softmax"'],
  topk_method: [(value) => value === "greedy", '"greedy"'],
  use_sliding_window: [isFalse, "false: sliding windows are not supported"],
};

function unsupportedOptions(raw: JsonObject, fields: object): ConfigProblem[] {
  return Object.entries(OPTIONS).flatMap(([name, [supported, expectation]]) => {
    const value = raw[name];
    const fine = name in fields || value === undefined || supported(value);
    return fine ? [] : [{ name, value, expectation }];
  });
}

/** Options that no family reads, where they say otherwise than the family's config. */
function deniedOptions(raw: JsonObject, config: ModelConfig): ConfigProblem[] {
  const { mlp_layer_types: kinds, use_qk_norm: useQkNorm } = raw;
  const problems: ConfigProblem[] = [];
  const own = config.layers.map((kind) => (kind === "moe" ? "sparse" : kind));
  if (kinds !== undefined && JSON.stringify(kinds) !== JSON.stringify(own)) {
    const expectation = `null or, as the other options have it, ${JSON.stringify(own)}`;
    problems.push({ name: "mlp_layer_types", value: kinds, expectation });
  }
  const { attention } = config;
  const hasNorm = attention.kind === "heads" && attention.qkNorm !== "none";
  if (useQkNorm !== undefined && useQkNorm !== hasNorm) {
    const expectation = `${hasNorm}, as ${config.modelType} computes it`;
    problems.push({ name: "use_qk_norm", value: useQkNorm, expectation });
  }
  return problems;
}

const fp8Schema = z.object({
  quant_method: z.literal("fp8"),
  fmt: z.literal("e4m3").nullish(),
  weight_block_size: z.tuple([z.literal(128), z.literal(128)]),
});

function readQuantization(
  { quantization_config: value }: JsonObject,
  known: readonly Quantization[],
): Quantization | undefined | "unknown" {
  if (value === undefined) return undefined;
  if (known.includes("fp8") && fp8Schema.safeParse(value).success) return "fp8";
  const method = isJsonObject(value) ? value.quant_method : undefined;
  return known.includes("mxfp4") && method === "mxfp4" ? "mxfp4" : "unknown";
}

function unknownQuantization(raw: JsonObject, known: readonly Quantization[]): ConfigProblem {
  const texts = {
    fp8: 'quant_method "fp8" in fmt "e4m3" with weight_block_size [128, 128]',
    mxfp4: 'quant_method "mxfp4"',
  };
  const expectation = ["null", ...known.map((quantization) => texts[quantization])].join(" or ");
  return { name: "quantization_config", value: raw.quantization_config, expectation };
}

/** Values that can not stand together. */
function contradictions(config: ModelConfig, countName: string): ConfigProblem[] {
  const problems: ConfigProblem[] = [];
  const require: Require = (holds, name, value, expectation) => {
    if (!holds) problems.push({ name, value, expectation });
  };
  const { numExperts, numExpertsPerToken: topK, gate } = config;
  const { attention } = config;
  if (attention.kind === "heads") checkHeads(attention, require);
  else checkLatent(attention, require);
  require(topK <= numExperts, "num_experts_per_tok", topK, `at most ${countName} ${numExperts}`);
  const inAll = config.numLayers * numExperts;
  require(inAll <=
    1_000_000, countName, numExperts, "at most 1000000 experts in all layers together");
  if (config.quantization === "mxfp4") {
    const grouped = (name: string, value: number) =>
      require(value % MXFP4_GROUP === 0, name, value, `a multiple of ${MXFP4_GROUP} in MXFP4`);
    grouped("hidden_size", config.hiddenSize);
    grouped("intermediate_size", config.expertIntermediateSize);
  }
  if (gate.groups) {
    const { numGroups, topGroups, rank } = gate.groups;
    const groupSize = numExperts / numGroups;
    const smallest = rank === "sumOfTwo" ? 2 : 1;
    const fits = Number.isInteger(groupSize) && groupSize >= smallest;
    const parts = `groups of ${smallest} or more of ${countName} ${numExperts}`;
    require(fits, "n_group", numGroups, parts);
    require(topGroups <= numGroups, "topk_group", topGroups, `at most n_group ${numGroups}`);
    const inGroups = topGroups * groupSize;
    const limit = `at most the ${inGroups} experts of ${topGroups} groups`;
    require(!fits || topK <= inGroups, "num_experts_per_tok", topK, limit);
  }
  return problems;
}

type Require = (holds: boolean, name: string, value: unknown, expectation: string) => void;

function checkHeads({ numHeads, numKvHeads, headDim }: HeadsAttention, require: Require): void {
  require(headDim % SIZE_STEP ===
    0, "head_dim", headDim, `a multiple of ${SIZE_STEP} (hidden_size / num_attention_heads where it is not given)`);
  require(numHeads % numKvHeads ===
    0, "num_key_value_heads", numKvHeads, `a divisor of num_attention_heads ${numHeads}`);
  require(numHeads * headDim <=
    MAX_SIZE, "num_attention_heads", numHeads, `num_attention_heads · head_dim at most ${MAX_SIZE}`);
}

function checkLatent(attention: LatentAttention, require: Require): void {
  const { numHeads, nopeDim, ropeDim, valueDim } = attention;
  const widest = numHeads * Math.max(nopeDim + Math.max(ropeDim, valueDim));
  require(widest <=
    MAX_SIZE, "num_attention_heads", numHeads, `num_attention_heads · columns of a head at most ${MAX_SIZE}`);
  const values = numHeads * valueDim;
  require(values % SIZE_STEP ===
    0, "v_head_dim", valueDim, `num_attention_heads · v_head_dim a multiple of ${SIZE_STEP}`);
}
