/** From the bytes of a request to checked fields: JSON, nulls, unknown and unsupported fields, the schema. */

import { z } from "zod";

import type { Log } from "../../core/platform/log.ts";
import { InvalidRequestError } from "../engine/errors.ts";
import { unknownFields } from "./body-fields.ts";
import { fieldError, shown } from "./field-errors.ts";

const MAX_NAMES_LOGGED = 16;

/**
 * Fields of a JSON body; null is absent.
 * Throws InvalidRequestError that names the first field at fault; logs unknown fields once, nested ones too.
 */
export function parseBody<T extends z.ZodObject>(
  schema: T,
  body: unknown,
  log: Pick<Log, "warn">,
): z.output<T> {
  if (typeof body !== "object" || body === null || Array.isArray(body)) {
    throw new InvalidRequestError(`the body must be a JSON object, got ${shown(body)}`);
  }
  const present = Object.fromEntries(Object.entries(body).filter(([, value]) => value !== null));
  const unknown = unknownFields(new Set(Object.keys(schema.shape)), present);
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
