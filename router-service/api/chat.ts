/** POST /v1/chat/completions. */

import { InvalidRequestError } from "../engine/errors.ts";
import type { AnswerFormat, Plan } from "./answer.ts";
import { finishLogprobs, finishTokenIds, planChoices } from "./choices.ts";
import { chatLogprobs, promptLogprobs } from "./logprobs.ts";
import { chatSchema } from "./openai-schemas.ts";
import { encodePrompt } from "./prompts.ts";
import { checkUsageOptions, parseBody } from "./request-body.ts";
import { resolveSampling } from "./sampling.ts";
import { checkModel, type Serving } from "./serving.ts";

/** Checks a chat body and plans its completions. Throws what names the field at fault. */
export function planChat(serving: Serving, body: unknown, id: string): Plan {
  const fields = parseBody(chatSchema, body, serving.log);
  checkModel(serving, fields.model);
  checkUsageOptions(fields);
  if (fields.top_logprobs !== undefined && fields.logprobs !== true) {
    throw new InvalidRequestError("top_logprobs: needs logprobs to be true", "top_logprobs");
  }
  const input = { kind: "chat", messages: fields.messages } as const;
  const prompt = encodePrompt(serving, input, "messages", fields.add_special_tokens ?? false);
  const field = fields.max_completion_tokens === undefined ? "max_tokens" : "max_completion_tokens";
  const maxTokens = fields.max_completion_tokens ?? fields.max_tokens;
  const logprobs = fields.logprobs === true ? (fields.top_logprobs ?? 0) : undefined;
  const sampling = resolveSampling(fields, {
    generation: serving.generation,
    vocabSize: serving.config.vocabSize,
    maxModelLen: serving.engine.maxModelLen,
    promptTokens: prompt.tokenIds.length,
    maxTokens: maxTokens === undefined ? undefined : { field, value: maxTokens },
    defaultMaxTokens: serving.generation.maxNewTokens,
    logprobs,
    promptLogprobs: fields.prompt_logprobs,
    fieldPrefix: "",
    promptField: "messages",
  });
  return {
    choices: planChoices([prompt], fields.n ?? 1, () => sampling),
    format: chatFormat(serving, {
      id,
      logprobs,
      promptLogprobs: fields.prompt_logprobs,
      tokenIds: fields.return_token_ids ?? false,
    }),
    stream: fields.stream ?? false,
    includeUsage: fields.stream_options?.include_usage ?? false,
  };
}

interface ChatOptions {
  readonly id: string;
  readonly logprobs: number | undefined;
  readonly promptLogprobs: number | undefined;
  /** vLLM's return_token_ids. */
  readonly tokenIds: boolean;
}

function chatFormat(serving: Serving, options: ChatOptions): AnswerFormat {
  const { tokenizer } = serving;
  const created = Math.floor(Date.now() / 1000);
  const head = (object: string) => ({
    id: options.id,
    object,
    created,
    model: serving.servedModelName,
    system_fingerprint: null,
  });
  let promptTokenIds: readonly number[] | undefined;
  return {
    chunk: (choices) => {
      const ids = promptTokenIds === undefined ? {} : { prompt_token_ids: promptTokenIds };
      promptTokenIds = undefined;
      return { ...head("chat.completion.chunk"), choices, ...ids };
    },
    choices: (choice, event) => {
      const { index } = choice;
      if (event.type === "prompt") {
        if (options.tokenIds && index === 0) promptTokenIds = choice.prompt.tokenIds;
        const delta = { role: "assistant", content: "" };
        return [{ index, delta, logprobs: null, finish_reason: null }];
      }
      if (event.type === "finish") {
        const ids = options.tokenIds ? { token_ids: finishTokenIds(event) } : {};
        const stop_reason = event.stopReason ?? null;
        const logprobs = event.logprobs
          ? chatLogprobs(tokenizer, finishLogprobs(event), options.logprobs ?? 0)
          : null;
        return [{ index, delta: {}, logprobs, finish_reason: event.reason, stop_reason, ...ids }];
      }
      if (event.text === "" && event.logprobs === undefined && !options.tokenIds) return [];
      const logprobs = event.logprobs
        ? chatLogprobs(tokenizer, event.logprobs, options.logprobs ?? 0)
        : null;
      const ids = options.tokenIds ? { token_ids: event.tokenIds } : {};
      return [{ index, delta: { content: event.text }, logprobs, finish_reason: null, ...ids }];
    },
    whole: (results) => {
      const choices = results.map(({ choice, text, tokenIds, logprobs, finish }) => ({
        index: choice.index,
        message: { role: "assistant", content: text, refusal: null },
        logprobs:
          options.logprobs === undefined
            ? null
            : chatLogprobs(tokenizer, logprobs, options.logprobs),
        finish_reason: finish.reason,
        stop_reason: finish.stopReason ?? null,
        ...(options.tokenIds ? { token_ids: tokenIds } : {}),
      }));
      const [{ prompt, choice }] = results;
      const top = options.promptLogprobs;
      return {
        ...head("chat.completion"),
        choices,
        ...(options.tokenIds ? { prompt_token_ids: choice.prompt.tokenIds } : {}),
        ...(top === undefined
          ? {}
          : { prompt_logprobs: promptLogprobs(tokenizer, prompt.promptLogprobs ?? [], top) }),
      };
    },
  };
}
