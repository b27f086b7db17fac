/** Which fields of a body are known, ignored, refused because they would change the output, or unknown. */

import { InvalidRequestError } from "../engine/errors.ts";
import { fieldPath, shown } from "./field-errors.ts";

/** Whether a value of an unsupported field leaves the output as it is. */
type Harmless = (value: unknown, body: Readonly<Record<string, unknown>>) => boolean;

const never: Harmless = () => false;
const isFalse: Harmless = (value) => value === false;
const isTrue: Harmless = (value) => value === true;
const isEmpty: Harmless = (value) =>
  value === "" || (typeof value === "object" && value !== null && Object.keys(value).length === 0);
const noTool: Harmless = (value) => value === "none" || value === "auto";

const isTextFormat: Harmless = (value) =>
  isObject(value) &&
  Object.entries(value).every(([key, one]) => one === null || (key === "type" && one === "text"));

/** Fields of OpenAI and vLLM that would change the output and are not supported, with the values that change nothing. */
const UNSUPPORTED: ReadonlyMap<string, Harmless> = new Map<string, Harmless>([
  ["tools", isEmpty],
  ["tool_choice", noTool],
  ["functions", isEmpty],
  ["function_call", noTool],
  ["response_format", isTextFormat],
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

/** What is known of the objects inside a field; a schema checks their known fields. */
interface NestedFields {
  readonly known: ReadonlySet<string>;
  readonly unsupported: ReadonlyMap<string, Harmless>;
  readonly ignored: ReadonlySet<string>;
  readonly nested: ReadonlyMap<string, NestedFields>;
}

const NONE: ReadonlyMap<string, never> = new Map<string, never>();

const TEXT_PART: NestedFields = {
  known: new Set(["type", "text"]),
  unsupported: NONE,
  ignored: new Set(["annotations"]),
  nested: NONE,
};

const MESSAGE: NestedFields = {
  known: new Set(["role", "content", "tool_calls", "function_call"]),
  // A client that sends an answer back as it came has these, empty.
  unsupported: new Map([
    ["tool_call_id", never],
    ["audio", never],
    ["refusal", isEmpty],
    ["reasoning", isEmpty],
    ["reasoning_content", isEmpty],
    ["prefix", isFalse],
  ]),
  ignored: new Set(["annotations"]),
  nested: new Map([["content", TEXT_PART]]),
};

const STREAM_OPTIONS: NestedFields = {
  known: new Set(["include_usage"]),
  unsupported: new Map([["continuous_usage_stats", isFalse]]),
  ignored: new Set(["include_obfuscation"]),
  nested: NONE,
};

const NESTED: ReadonlyMap<string, NestedFields> = new Map([
  ["messages", MESSAGE],
  ["stream_options", STREAM_OPTIONS],
]);

/**
 * Names of the fields of a body that nobody knows, each once: `foo`, `messages[].foo`; null is absent.
 * Throws InvalidRequestError for a field that would change the output.
 */
export function unknownFields(
  known: ReadonlySet<string>,
  body: Readonly<Record<string, unknown>>,
): string[] {
  const nested = new Map([...NESTED].filter(([field]) => known.has(field)));
  const fields = { known, unsupported: UNSUPPORTED, ignored: IGNORED, nested };
  const unknown = new Set<string>();
  collect(body, fields, [], unknown);
  return [...unknown];
}

function collect(
  value: Readonly<Record<string, unknown>>,
  fields: NestedFields,
  path: readonly PropertyKey[],
  unknown: Set<string>,
): void {
  for (const [field, inner] of Object.entries(value)) {
    if (inner === null || fields.ignored.has(field)) continue;
    const here = [...path, field];
    const harmless = fields.known.has(field) ? undefined : fields.unsupported.get(field);
    if (harmless !== undefined && !harmless(inner, value)) {
      const name = fieldPath(here);
      const message = `${name}: is not supported (got ${shown(inner)})`;
      throw new InvalidRequestError(message, name, "unsupported_parameter");
    }
    if (harmless === undefined && !fields.known.has(field)) {
      unknown.add(
        fieldPath(here)
          .slice(0, 64)
          .replaceAll(/\[\d+\]/g, "[]"),
      );
    }
    const nested = fields.nested.get(field);
    if (nested === undefined) continue;
    if (isObject(inner)) collect(inner, nested, here, unknown);
    else if (Array.isArray(inner)) {
      for (const [i, item] of inner.entries()) {
        if (isObject(item)) collect(item, nested, [...here, i], unknown);
      }
    }
  }
}

function isObject(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
