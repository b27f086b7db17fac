/** Fields of `config.json` that model families share, as zod schemas under Hugging Face's names. */

import { z } from "zod";

import { type GateConfig, type ModelConfig, type ModelType, NO_MULTIPLIERS } from "../config.ts";

/** Largest value of one size: far above real models, and small enough that products of three stay exact. */
export const MAX_SIZE = 2 ** 24;
/** The kernels read rows as vec4 of f16 pairs. */
export const SIZE_STEP = 8;
/** Experts are u16 on the wire, and 65535 means none. */
const MAX_EXPERTS = 65535;
/** More than any model has. */
export const MAX_HEADS = 65535;
const MAX_LAYERS = 1024;

/** An integer within limits. */
export function integer(min: number, max: number) {
  const error = `an integer from ${min} to ${max}`;
  return z.int({ error }).min(min, { error }).max(max, { error });
}

/** A size that is a multiple of `step`, at least `min`. */
export function stepped(min: number, step = SIZE_STEP) {
  const error = `a multiple of ${step} from ${min} to ${MAX_SIZE}`;
  return z.int({ error }).min(min, { error }).max(MAX_SIZE, { error }).multipleOf(step, { error });
}

/** A finite number above 0. */
export function positive() {
  const error = "a number above 0";
  return z.number({ error }).positive({ error });
}

/** True or false, with the class's default. */
export function flag(whenAbsent: boolean) {
  return z.boolean({ error: "true or false" }).default(whenAbsent);
}

/** A number of experts. */
export function experts() {
  return integer(1, MAX_EXPERTS);
}

/** A number of layers, or an index of one. */
export function layers(min: number) {
  return integer(min, MAX_LAYERS);
}

/** One of these words; the first is the class's default. */
export function word<const Words extends readonly [string, ...string[]]>(...words: Words) {
  const error = words.map((value) => JSON.stringify(value)).join(" or ");
  return z.enum(words, { error }).default(words[0] as never);
}

/** What differs in the fields of every decoder: the class's defaults. */
interface DecoderDefaults {
  readonly maxPositions: number;
  readonly rmsNormEps: number;
}

/** Fields of every family. */
export function decoderFields({ maxPositions, rmsNormEps }: DecoderDefaults) {
  return {
    vocab_size: integer(1, MAX_SIZE),
    hidden_size: stepped(SIZE_STEP),
    num_hidden_layers: layers(1),
    num_attention_heads: integer(1, MAX_HEADS),
    max_position_embeddings: integer(1, MAX_SIZE).default(maxPositions),
    rms_norm_eps: positive().default(rmsNormEps),
    tie_word_embeddings: flag(false),
    hidden_act: word("silu"),
    num_experts_per_tok: experts(),
  };
}

/** What `decoderFields` read. */
export type DecoderFields = z.output<z.ZodObject<ReturnType<typeof decoderFields>>>;

/** The part of a config that `decoderFields` give, and what most families have. */
export function decoderConfig(modelType: ModelType, fields: DecoderFields) {
  return {
    modelType,
    vocabSize: fields.vocab_size,
    hiddenSize: fields.hidden_size,
    numLayers: fields.num_hidden_layers,
    maxPositions: fields.max_position_embeddings,
    rmsNormEps: fields.rms_norm_eps,
    tieWordEmbeddings: fields.tie_word_embeddings,
    numExpertsPerToken: fields.num_experts_per_tok,
    activation: { kind: "silu" },
    expertBias: false,
    denseIntermediateSize: 0,
    multipliers: NO_MULTIPLIERS,
  } satisfies Partial<ModelConfig>;
}

/** One value for each decoder layer. */
export function everyLayer<const Value>(
  { num_hidden_layers: numLayers }: DecoderFields,
  value: Value,
): Value[] {
  return Array.from({ length: numLayers }, () => value);
}

/** A gate whose scores are the softmax over all experts, without bias, groups or scaling. */
export function softmaxGate(normTopkProb: boolean): GateConfig {
  return { score: "softmax", bias: false, correction: false, normTopkProb, scaling: 1 };
}
