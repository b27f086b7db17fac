/** Bodies of the OpenAI-compatible endpoints. */

import { z } from "zod";

import type { ChatMessage } from "../../core/model/tokenizer/text.ts";
import { InvalidRequestError } from "../engine/errors.ts";
import { shown } from "./field-errors.ts";
import { MAX_LOGPROBS, MAX_N, samplingShape } from "./sampling.ts";

/** A prompt as the client sent it. */
export type PromptInput =
  | { readonly kind: "text"; readonly text: string }
  | { readonly kind: "ids"; readonly ids: readonly number[] }
  | { readonly kind: "chat"; readonly messages: readonly ChatMessage[] };

/** Prompts of one request at most. */
const MAX_PROMPTS = 256;

const textPart = z.object({ type: z.literal("text"), text: z.string() });

const message = z.object({
  role: z.enum(["system", "developer", "user", "assistant"]),
  content: z.preprocess(
    (value) => (typeof value === "string" ? [{ type: "text", text: value }] : value),
    z.array(textPart, "expected a string or a list of text parts"),
  ),
  // Tools are not supported, so neither is a conversation that used some.
  tool_calls: z.array(z.unknown()).max(0).nullish(),
  function_call: z.null("expected nothing: function calls are not supported").optional(),
});

/** Messages of a conversation; text parts are joined by line breaks. */
export const messagesSchema = z
  .array(message)
  .min(1)
  .transform((messages): ChatMessage[] =>
    messages.map(({ role, content }) => ({
      role: role === "developer" ? "system" : role,
      content: content.map((part) => part.text).join("\n"),
    })),
  );

const common = {
  model: z.string().optional(),
  n: z.int().min(1).max(MAX_N).optional(),
  stream: z.boolean().optional(),
  stream_options: z.object({ include_usage: z.boolean().nullish() }).optional(),
  return_token_ids: z.boolean().optional(),
  ...samplingShape,
};

/** Body of POST /v1/chat/completions. */
export const chatSchema = z.object({
  messages: messagesSchema,
  max_tokens: z.int().min(1).optional(),
  max_completion_tokens: z.int().min(1).optional(),
  logprobs: z.boolean().optional(),
  top_logprobs: z.int().min(0).max(MAX_LOGPROBS).optional(),
  add_special_tokens: z.boolean().optional(),
  echo: z.literal(false).optional(),
  ...common,
});

/** Body of POST /v1/completions. */
export const completionSchema = z.object({
  prompt: z.unknown(),
  max_tokens: z.int().min(0).optional(),
  echo: z.boolean().optional(),
  logprobs: z.int().min(0).max(MAX_LOGPROBS).optional(),
  add_special_tokens: z.boolean().optional(),
  ...common,
});

/** Body of POST /tokenize. */
export const tokenizeSchema = z.object({
  model: z.string().optional(),
  prompt: z.string().optional(),
  messages: messagesSchema.optional(),
  add_special_tokens: z.boolean().optional(),
  return_token_strs: z.boolean().optional(),
});

/** Body of POST /detokenize. */
export const detokenizeSchema = z.object({
  model: z.string().optional(),
  tokens: z.array(z.int().min(0)),
});

/** The prompts of a completions body: a string, token ids, or a list of either. Throws InvalidRequestError. */
export function readPrompts(prompt: unknown): PromptInput[] {
  const expected = "expected a string, token ids, or a list of either";
  const refuse = (field: string, problem: string) =>
    new InvalidRequestError(`${field}: ${problem}`, field);
  if (prompt === undefined) throw refuse("prompt", `is missing, ${expected}`);
  if (typeof prompt === "string") return [{ kind: "text", text: prompt }];
  if (!Array.isArray(prompt)) throw refuse("prompt", `${expected}, got ${shown(prompt)}`);
  if (prompt.length === 0) throw refuse("prompt", "is an empty list");
  if (typeof prompt[0] === "number") return [{ kind: "ids", ids: readIds(prompt, "prompt") }];
  if (prompt.length > MAX_PROMPTS) {
    throw refuse("prompt", `${prompt.length} prompts, expected at most ${MAX_PROMPTS}`);
  }
  return prompt.map((item: unknown, i): PromptInput => {
    if (typeof item === "string") return { kind: "text", text: item };
    if (!Array.isArray(item)) throw refuse(`prompt[${i}]`, `${expected}, got ${shown(item)}`);
    return { kind: "ids", ids: readIds(item, `prompt[${i}]`) };
  });
}

function readIds(items: readonly unknown[], field: string): number[] {
  return items.map((item, i) => {
    if (Number.isSafeInteger(item) && (item as number) >= 0) return item as number;
    const name = `${field}[${i}]`;
    throw new InvalidRequestError(`${name}: expected a token id, got ${shown(item)}`, name);
  });
}
