/** Turns what a schema says about a body into one error that names the field, its value and the limit. */

import type { z } from "zod";

import { InvalidRequestError } from "../engine/errors.ts";

const MAX_SHOWN = 80;

/** `messages[0].content` for ["messages", 0, "content"]. */
export function fieldPath(path: readonly PropertyKey[], prefix = ""): string {
  let text = prefix;
  for (const key of path) {
    if (typeof key === "number") text += `[${key}]`;
    else text += (text === "" || text.endsWith(".") ? "" : ".") + shorten(String(key));
  }
  return text;
}

/** A value as an error message shows it: JSON, cut after 80 characters. */
export function shown(value: unknown): string {
  if (value === undefined) return "nothing";
  if (typeof value === "number") return String(value);
  if (Array.isArray(value) && value.length > 8) return `a list of ${value.length}`;
  if (typeof value === "string") return JSON.stringify(shorten(value));
  if (typeof value === "object" && value !== null && !Array.isArray(value)) return "an object";
  if (Array.isArray(value)) return value.length === 0 ? "[]" : "a list";
  return JSON.stringify(value);
}

/** The first problem of a failed parse as an error that names its field. */
export function fieldError(issues: z.core.$ZodIssue[], input: unknown, prefix = ""): Error {
  const issue = issues[0];
  const path = pathOf(issue);
  const param = fieldPath(path, prefix);
  const value = valueAt(input, path);
  const message = param === "" ? problem(issue, value) : `${param}: ${problem(issue, value)}`;
  return new InvalidRequestError(message, param === "" ? undefined : param);
}

/** Where the problem is; an unknown field is named itself, not what it is in. */
function pathOf(issue: z.core.$ZodIssue): readonly PropertyKey[] {
  return issue.code === "unrecognized_keys"
    ? [...issue.path, ...issue.keys.slice(0, 1)]
    : issue.path;
}

function problem(issue: z.core.$ZodIssue, value: unknown): string {
  switch (issue.code) {
    case "invalid_type":
      if (value === undefined) return `is missing, ${expectation(issue)}`;
      return `${expectation(issue)}, got ${shown(value)}`;
    case "too_small":
    case "too_big": {
      const above = issue.code === "too_big";
      const limit = issue.code === "too_big" ? issue.maximum : issue.minimum;
      const bound = `${issue.inclusive === false ? (above ? "less than" : "more than") : above ? "at most" : "at least"} ${limit}`;
      if (issue.origin === "array") return `${lengthOf(value)} entries, expected ${bound}`;
      if (issue.origin === "string") return `${lengthOf(value)} characters, expected ${bound}`;
      return `${shown(value)} is out of range, expected ${bound}`;
    }
    case "invalid_value":
      return `expected ${issue.values.map((v) => JSON.stringify(v)).join(", ")}, got ${shown(value)}`;
    case "invalid_key":
      return issue.issues[0]?.message ?? "the key is not valid";
    default:
      // A schema's own words say what it wants, not what it got.
      if (!issue.message.startsWith("expected ")) return issue.message;
      if (value === undefined) return `is missing, ${issue.message}`;
      return `${issue.message}, got ${shown(value)}`;
  }
}

/** A schema's own words where it has some, else the name of the type. */
function expectation(issue: z.core.$ZodIssueInvalidType): string {
  if (issue.message.startsWith("expected ")) return issue.message;
  return `expected ${issue.expected === "int" ? "integer" : issue.expected}`;
}

function valueAt(input: unknown, path: readonly PropertyKey[]): unknown {
  let value = input;
  for (const key of path) {
    // A lone string stands for a list of one in `stop` and `content`.
    if (typeof value === "string" && typeof key === "number") return value;
    if (typeof value !== "object" || value === null || !Object.hasOwn(value, key)) return undefined;
    value = (value as Record<PropertyKey, unknown>)[key];
  }
  return value;
}

function lengthOf(value: unknown): number {
  return typeof value === "string" || Array.isArray(value) ? value.length : 1;
}

function shorten(text: string): string {
  return text.length <= MAX_SHOWN ? text : `${text.slice(0, MAX_SHOWN)}…`;
}
