/** A gRPC GenerateRequest as a plan for the engine, and the engine's events as gRPC messages. */

import { z } from "zod";

import {
  FinishReason,
  type GenerateChunk,
  type GenerateRequest,
  type PositionLogprobs as WireLogprobs,
  type SamplingParams as WireSampling,
} from "../../proto/gen/switchyard/v1/inference.ts";
import { InvalidRequestError } from "../engine/errors.ts";
import type { PositionLogprobs } from "../engine/request.ts";
import type { TextEvent } from "../engine/text-stream.ts";
import {
  type Choice,
  finishLogprobs,
  finishTokenIds,
  planChoices,
  type UsageCount,
} from "./choices.ts";
import { fieldError } from "./field-errors.ts";
import { messagesSchema, type PromptInput } from "./openai-schemas.ts";
import { encodePrompt } from "./prompts.ts";
import { MAX_LOGPROBS, resolveSampling, samplingShape } from "./sampling.ts";
import type { Serving } from "./serving.ts";

/** Tokens to generate where neither the client nor generation_config.json says. */
const DEFAULT_MAX_TOKENS = 256;
const PREFIX = "sampling.";

const samplingSchema = z.object({
  ...samplingShape,
  max_tokens: z.int().min(1).optional(),
  logprobs: z.int().min(0).max(MAX_LOGPROBS).optional(),
});

/** The one choice of a request. Throws what names the field at fault, as the proto file names it. */
export function planGenerate(serving: Serving, request: GenerateRequest): Choice {
  const sent = samplingFields(request.sampling);
  const parsed = samplingSchema.safeParse(sent);
  if (!parsed.success) throw fieldError(parsed.error.issues, sent, PREFIX);
  const fields = parsed.data;
  const { input, field } = promptOf(request);
  const prompt = encodePrompt(serving, input, field, input.kind === "text");
  const value = fields.max_tokens;
  const sampling = resolveSampling(fields, {
    generation: serving.generation,
    vocabSize: serving.config.vocabSize,
    maxModelLen: serving.engine.maxModelLen,
    promptTokens: prompt.tokenIds.length,
    maxTokens: value === undefined ? undefined : { field: `${PREFIX}max_tokens`, value },
    defaultMaxTokens: serving.generation.maxNewTokens ?? DEFAULT_MAX_TOKENS,
    logprobs: fields.logprobs,
    promptLogprobs: fields.prompt_logprobs,
    fieldPrefix: PREFIX,
    promptField: field,
  });
  return planChoices([prompt], 1, () => sampling)[0];
}

/** The chunk of an event; undefined where there is nothing to tell yet. */
export function chunkOf(
  requestId: string,
  choice: Choice,
  event: TextEvent,
  usage: Readonly<UsageCount>,
): GenerateChunk | undefined {
  const nothing: GenerateChunk = {
    requestId,
    text: "",
    tokenIds: [],
    logprobs: [],
    promptLogprobs: [],
    finishReason: FinishReason.FINISH_REASON_UNSPECIFIED,
    usage: undefined,
  };
  if (event.type === "prompt") {
    if (event.promptLogprobs === undefined) return undefined;
    return { ...nothing, promptLogprobs: wirePrompt(choice, event.promptLogprobs) };
  }
  if (event.type === "finish") {
    const tokenIds = [...finishTokenIds(event)];
    const logprobs = finishLogprobs(event).map(wirePosition);
    const finishReason = FINISH[event.reason];
    return { ...nothing, tokenIds, logprobs, finishReason, usage: { ...usage } };
  }
  const logprobs = (event.logprobs ?? []).map(wirePosition);
  return { ...nothing, text: event.text, tokenIds: [...event.tokenIds], logprobs };
}

/** Finish reasons on the wire. */
export const FINISH = {
  stop: FinishReason.FINISH_REASON_STOP,
  length: FinishReason.FINISH_REASON_LENGTH,
} as const;

/** Log-probabilities of one generated position on the wire. */
export function wirePosition(position: PositionLogprobs): WireLogprobs {
  return { token: position.token, top: [...position.top], undefined: false };
}

/** Log-probabilities of the prompt on the wire; the first token has none. */
export function wirePrompt(
  choice: Choice,
  positions: readonly (PositionLogprobs | undefined)[],
): WireLogprobs[] {
  return positions.map((position, i) => {
    if (position !== undefined) return wirePosition(position);
    const token = { tokenId: choice.prompt.tokenIds[i], logprob: 0 };
    return { token, top: [], undefined: true };
  });
}

function promptOf({ prompt }: GenerateRequest): { input: PromptInput; field: string } {
  if (prompt === undefined) {
    const message = "prompt: is missing, expected one of text, token_ids and chat";
    throw new InvalidRequestError(message, "prompt");
  }
  if (prompt.$case === "text")
    return { input: { kind: "text", text: prompt.value }, field: "text" };
  if (prompt.$case === "tokenIds") {
    return { input: { kind: "ids", ids: prompt.value.ids }, field: "token_ids" };
  }
  const parsed = messagesSchema.safeParse(prompt.value.messages);
  if (!parsed.success)
    throw fieldError(parsed.error.issues, prompt.value.messages, "chat.messages");
  return { input: { kind: "chat", messages: parsed.data }, field: "chat.messages" };
}

/** The message's fields under the names of the schema; those not set are absent. */
function samplingFields(sampling: WireSampling | undefined): Record<string, unknown> {
  if (sampling === undefined) return {};
  return {
    max_tokens: sampling.maxTokens,
    min_tokens: sampling.minTokens,
    temperature: sampling.temperature,
    top_p: sampling.topP,
    top_k: sampling.topK,
    min_p: sampling.minP,
    repetition_penalty: sampling.repetitionPenalty,
    frequency_penalty: sampling.frequencyPenalty,
    presence_penalty: sampling.presencePenalty,
    logit_bias: sampling.logitBias,
    seed: sampling.seed,
    stop: sampling.stop,
    stop_token_ids: sampling.stopTokenIds,
    ignore_eos: sampling.ignoreEos,
    logprobs: sampling.logprobs,
    prompt_logprobs: sampling.promptLogprobs,
  };
}
