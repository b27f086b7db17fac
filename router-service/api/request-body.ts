/** From the bytes of a request to checked fields: JSON, nulls, unknown and unsupported fields, the schema. */

import { z } from "zod";

import { InvalidRequestError } from "../engine/errors.ts";
import type { Serving } from "./serving.ts";
import { fieldError, shown } from "./field-errors.ts";

/** Whether a value of an unsupported field leaves the output as it is. */
type Harmless = (value: unknown, body: Readonly<Record<string, unknown>>) => boolean;

const never: Harmless = () => false;
const isFalse: Harmless = (value) => value === false;
const isTrue: Harmless = (value) => value === true;
const isEmpty: Harmless = (value) =>
  value === "" || (typeof value === "object" && value !== null && Object.keys(value).length === 0);
const noTool: Harmless = (value) => value === "none" || value === "auto";

/** Fields of OpenAI and vLLM that would change the output and are not supported, with the values that change nothing. */
const UNSUPPORTED: ReadonlyMap<string, Harmless> = new Map<string, Harmless>([
  ["tools", isEmpty],
  ["tool_choice", noTool],
  ["functions", isEmpty],
  ["function_call", noTool],
  ["response_format", (value) => isEmptyFormat(value)],
  ["modalities", (value) => Array.isArray(value) && value.every((kind) => kind === "text")],
  ["audio", never],
  ["prediction", never],
  ["web_search_options", never],
  ["reasoning_effort", (value) => value === "none"],
  ["verbosity", (value) => value === "medium"],
  ["best_of", (value, body) => value === (body["n"] ?? 1)],
  ["suffix", isEmpty],
  ["guided_json", never],
  ["guided_regex", never],
  ["guided_choice", never],
  ["guided_grammar", never],
  ["guided_decoding_backend", never],
  ["structured_outputs", never],
  ["logits_processors", isEmpty],
  ["logit_processors", isEmpty],
  ["use_beam_search", isFalse],
  ["length_penalty", (value) => value === 1],
  ["allowed_token_ids", never],
  ["bad_words", isEmpty],
  ["truncate_prompt_tokens", never],
  ["prompt_embeds", never],
  ["skip_special_tokens", isTrue],
  ["spaces_between_special_tokens", isTrue],
  ["include_stop_str_in_output", isFalse],
  ["return_tokens_as_token_ids", isFalse],
  ["return_routed_experts", isFalse],
  ["chat_template", never],
  ["chat_template_kwargs", isEmpty],
  ["documents", isEmpty],
  ["add_generation_prompt", isTrue],
  ["continue_final_message", isFalse],
  ["thinking", never],
  ["enable_thinking", never],
  ["lora_request", never],
]);

/** Fields that change nothing about the output; they are ignored without a word. */
const IGNORED: ReadonlySet<string> = new Set([
  "user",
  "metadata",
  "store",
  "service_tier",
  "safety_identifier",
  "prompt_cache_key",
  "prompt_cache_retention",
  "parallel_tool_calls",
  "priority",
  "request_id",
]);

const MAX_NAMES_LOGGED = 16;

/**
 * Fields of a JSON body; null is absent.
 * Throws InvalidRequestError that names the first field at fault; logs unknown fields once.
 */
export function parseBody<T extends z.ZodObject>(
  schema: T,
  body: unknown,
  log: Serving["log"],
): z.output<T> {
  if (typeof body !== "object" || body === null || Array.isArray(body)) {
    throw new InvalidRequestError(`the body must be a JSON object, got ${shown(body)}`);
  }
  const present = Object.fromEntries(Object.entries(body).filter(([, value]) => value !== null));
  const unknown: string[] = [];
  for (const [field, value] of Object.entries(present)) {
    if (Object.hasOwn(schema.shape, field) || IGNORED.has(field)) continue;
    const harmless = UNSUPPORTED.get(field);
    if (harmless === undefined) unknown.push(field.slice(0, 64));
    else if (!harmless(value, present)) {
      throw new InvalidRequestError(
        `${field}: is not supported (got ${shown(value)})`,
        field,
        "unsupported_parameter",
      );
    }
  }
  const parsed = schema.safeParse(present);
  if (!parsed.success) throw fieldError(parsed.error.issues, present);
  if (unknown.length > 0) {
    const facts = { fields: unknown.slice(0, MAX_NAMES_LOGGED), count: unknown.length };
    log.warn(facts, "unknown fields of a request are ignored");
  }
  return parsed.data;
}

/** JSON of a body's bytes. Throws InvalidRequestError where they are not UTF-8 or not JSON. */
export function parseJson(bytes: Uint8Array): unknown {
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    throw new InvalidRequestError("the body is not valid UTF-8", undefined, "invalid_utf8");
  }
  try {
    return JSON.parse(text) as unknown;
  } catch (error) {
    const message = `the body is not valid JSON: ${(error as Error).message}`;
    throw new InvalidRequestError(message, undefined, "invalid_json");
  }
}

function isEmptyFormat(value: unknown): boolean {
  return typeof value === "object" && value !== null && "type" in value && value.type === "text";
}

/** Throws InvalidRequestError for options that only make sense with, or without, a stream. */
export function checkUsageOptions(fields: {
  readonly stream?: boolean | undefined;
  readonly stream_options?: unknown;
  readonly prompt_logprobs?: number | undefined;
}): void {
  const stream = fields.stream ?? false;
  if (!stream && fields.stream_options !== undefined) {
    throw new InvalidRequestError("stream_options: needs stream to be true", "stream_options");
  }
  if (stream && fields.prompt_logprobs !== undefined) {
    throw new InvalidRequestError(
      "prompt_logprobs: are not available where stream is true",
      "prompt_logprobs",
    );
  }
}
