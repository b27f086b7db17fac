/** Sampling fields of both doors: one schema, one place for limits and defaults. */

import { z } from "zod";

import type { GenerationConfig } from "../../core/model/config.ts";
import { InvalidRequestError } from "../engine/errors.ts";
import type { SamplingParams } from "../engine/request.ts";
import { fieldPath } from "./field-errors.ts";

/** Completions of one prompt at most. */
export const MAX_N = 16;
/** Most likely tokens per position at most. */
export const MAX_LOGPROBS = 20;
const MAX_STOP_STRINGS = 4;
const MAX_STOP_LENGTH = 256;
const MAX_STOP_IDS = 64;

const stopString = z.string().min(1).max(MAX_STOP_LENGTH);
const tokenId = z.int().min(0);

/** Sampling fields under their OpenAI and vLLM names; null is absent (the caller drops nulls). */
export const samplingShape = {
  min_tokens: z.int().min(0).optional(),
  temperature: z.number().min(0).max(2).optional(),
  top_p: z.number().gt(0).max(1).optional(),
  top_k: z.int().min(-1).optional(),
  min_p: z.number().min(0).max(1).optional(),
  repetition_penalty: z.number().gt(0).max(10).optional(),
  frequency_penalty: z.number().min(-2).max(2).optional(),
  presence_penalty: z.number().min(-2).max(2).optional(),
  logit_bias: z
    .record(z.string().regex(/^\d{1,9}$/, "is not a token id"), z.number().min(-100).max(100))
    .optional(),
  seed: z.int().optional(),
  stop: z
    .preprocess(
      (value) => (typeof value === "string" ? [value] : value),
      z.array(stopString).max(MAX_STOP_STRINGS),
    )
    .optional(),
  stop_token_ids: z.array(tokenId).max(MAX_STOP_IDS).optional(),
  ignore_eos: z.boolean().optional(),
  prompt_logprobs: z.int().min(0).max(MAX_LOGPROBS).optional(),
};

/** Sampling fields that passed the schema. */
export type SamplingFields = z.output<z.ZodObject<typeof samplingShape>>;

/** What turns sampling fields into the engine's parameters. */
export interface SamplingOptions {
  readonly generation: GenerationConfig;
  readonly vocabSize: number;
  /** Prompt and completion together. */
  readonly maxModelLen: number;
  readonly promptTokens: number;
  /** The client's limit on new tokens. */
  readonly maxTokens: { readonly field: string; readonly value: number } | undefined;
  /** Used without the client's limit, capped by what the context leaves; absent: all that it leaves. */
  readonly defaultMaxTokens: number | undefined;
  readonly logprobs: number | undefined;
  readonly promptLogprobs: number | undefined;
  /** Put before the names of fields in errors, e.g. "sampling.". */
  readonly fieldPrefix: string;
  /** The field that holds the prompt, as the client named it. */
  readonly promptField: string;
}

/**
 * The engine's parameters with every default filled in.
 * Throws InvalidRequestError where prompt and completion exceed the context, or a token id the vocabulary.
 */
export function resolveSampling(fields: SamplingFields, options: SamplingOptions): SamplingParams {
  const { generation, vocabSize, fieldPrefix } = options;
  const maxTokens = resolveMaxTokens(options);
  const minTokens = fields.min_tokens ?? 0;
  if (minTokens > maxTokens) {
    const field = `${fieldPrefix}min_tokens`;
    throw new InvalidRequestError(
      `${field}: ${minTokens} is more than the ${maxTokens} tokens to generate at most`,
      field,
    );
  }
  const logitBias = new Map<number, number>();
  for (const [id, bias] of Object.entries(fields.logit_bias ?? {})) {
    checkTokenId(Number(id), vocabSize, fieldPath(["logit_bias", id], fieldPrefix));
    logitBias.set(Number(id), bias);
  }
  const stopTokenIds = fields.stop_token_ids ?? [];
  stopTokenIds.forEach((id, i) =>
    checkTokenId(id, vocabSize, fieldPath(["stop_token_ids", i], fieldPrefix)),
  );
  const topK = fields.top_k ?? generation.topK ?? 0;
  return {
    maxTokens,
    minTokens,
    temperature: fields.temperature ?? generation.temperature ?? 1,
    topP: fields.top_p ?? generation.topP ?? 1,
    topK: topK <= 0 || topK >= vocabSize ? 0 : topK,
    minP: fields.min_p ?? generation.minP ?? 0,
    repetitionPenalty: fields.repetition_penalty ?? generation.repetitionPenalty ?? 1,
    frequencyPenalty: fields.frequency_penalty ?? 0,
    presencePenalty: fields.presence_penalty ?? 0,
    logitBias,
    seed: fields.seed,
    stop: fields.stop ?? [],
    stopTokenIds,
    ignoreEos: fields.ignore_eos ?? false,
    logprobs: options.logprobs,
    promptLogprobs: options.promptLogprobs,
  };
}

/** Throws InvalidRequestError unless the id is one of the vocabulary's. */
export function checkTokenId(id: number, vocabSize: number, field: string): void {
  if (id < vocabSize) return;
  throw new InvalidRequestError(
    `${field}: token id ${id} is not in the vocabulary of ${vocabSize} tokens`,
    field,
  );
}

/** The seed of the i-th completion of one prompt. */
export function seedOf(seed: number | undefined, i: number): number | undefined {
  if (seed === undefined) return undefined;
  return seed > Number.MAX_SAFE_INTEGER - i ? Number.MIN_SAFE_INTEGER + i : seed + i;
}

function resolveMaxTokens(options: SamplingOptions): number {
  const { maxTokens, maxModelLen, promptTokens, promptField } = options;
  const left = maxModelLen - promptTokens;
  const exceeds = (field: string, wanted: number) =>
    new InvalidRequestError(
      `the model's context is ${maxModelLen} tokens, but ${promptTokens + wanted} were requested ` +
        `(${promptTokens} in ${promptField}, ${wanted} to generate)`,
      field,
      "context_length_exceeded",
    );
  if (maxTokens === undefined) {
    if (left < 1) throw exceeds(promptField, 1);
    return Math.min(left, options.defaultMaxTokens ?? left);
  }
  if (left < maxTokens.value) {
    throw exceeds(left < 1 ? promptField : maxTokens.field, maxTokens.value);
  }
  return maxTokens.value;
}
