/** A config schema seen as command-line flags. */

import { z } from "zod";

/** What `.meta()` of a config field may say beside zod's own description. */
export interface FieldMeta {
  /** Sentence of the help text, without a full stop. */
  readonly description: string;
  /** Unit of a number: "s", "bytes", "tokens". */
  readonly unit?: string;
  /** What stands for the value in the help text. */
  readonly placeholder?: string;
  /** What a good value is, where the schema's own checks do not say it well. */
  readonly expectation?: string;
  /** The default in words, where its value says little. */
  readonly defaultText?: string;
  /** Never printed, never passed on a command line. */
  readonly secret?: boolean;
  /** An argument without a flag, before or after all flags, is this field's. One field of a schema at most. */
  readonly positional?: boolean;
}

/** One field of a config schema as a flag. */
export interface FlagDescription {
  /** Key of the config object: httpPort. */
  readonly key: string;
  /** --http-port */
  readonly flag: string;
  /** SWITCHYARD_HTTP_PORT */
  readonly env: string;
  readonly type: "text" | "number" | "boolean" | "list";
  readonly description: string;
  readonly placeholder: string;
  /** What a good value is, in words. */
  readonly expectation: string;
  readonly defaultText: string | undefined;
  readonly secret: boolean;
  readonly positional: boolean;
}

/** What z.toJSONSchema says of a field, with the field's meta merged in. */
type FieldSchema = Partial<FieldMeta> & {
  readonly type?: string;
  readonly enum?: readonly unknown[];
  readonly minimum?: number;
  readonly maximum?: number;
  readonly exclusiveMinimum?: number;
  readonly default?: unknown;
};

/** The flags of a schema, in its order. */
export function describeFlags(schema: z.ZodObject): FlagDescription[] {
  return Object.entries(schema.shape).map(([key, field]) => {
    const facts: FieldSchema = z.toJSONSchema(field as z.ZodType, {
      io: "input",
      unrepresentable: "any",
    }) as FieldSchema;
    const type = flagType(facts);
    const kebab = kebabCase(key);
    return {
      key,
      flag: `--${kebab}`,
      env: `SWITCHYARD_${kebab.replaceAll("-", "_").toUpperCase()}`,
      type,
      description: facts.description ?? "",
      placeholder: facts.placeholder ?? facts.enum?.join("|") ?? facts.unit?.toUpperCase() ?? "N",
      expectation: facts.expectation ?? expectation(facts),
      defaultText: facts.defaultText ?? defaultText(facts),
      secret: facts.secret ?? false,
      positional: facts.positional ?? false,
    };
  });
}

/** --http-port of httpPort. */
export function flagName(key: string): string {
  return `--${kebabCase(key)}`;
}

/** A value as a command line has it. */
export function flagText(value: unknown): string {
  if (Array.isArray(value)) return value.map(flagText).join(",");
  return typeof value === "string" ? value : JSON.stringify(value);
}

/** The candidate at an edit distance of at most 2 that is nearest, if any. */
export function nearest(name: string, candidates: readonly string[]): string | undefined {
  let best: string | undefined;
  let bestDistance = 3;
  for (const candidate of candidates) {
    const distance = editDistance(name, candidate);
    if (distance < bestDistance) [best, bestDistance] = [candidate, distance];
  }
  return best;
}

function kebabCase(key: string): string {
  return key.replaceAll(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
}

function flagType(facts: FieldSchema): FlagDescription["type"] {
  switch (facts.type) {
    case "integer":
    case "number":
      return "number";
    case "boolean":
      return "boolean";
    case "array":
      return "list";
    default:
      return "text";
  }
}

function expectation(facts: FieldSchema): string {
  if (facts.enum !== undefined) return `one of ${facts.enum.join(", ")}`;
  if (facts.type === "boolean") return "true or false";
  if (facts.type !== "integer" && facts.type !== "number") return facts.description ?? "a text";
  const unit = facts.unit === undefined ? "" : ` (${facts.unit})`;
  const kind = facts.type === "integer" ? "an integer" : "a number";
  const isAbove = facts.exclusiveMinimum !== undefined;
  const lowest = isAbove ? `above ${facts.exclusiveMinimum}` : `from ${facts.minimum ?? "any"}`;
  // zod bounds every integer by what a double holds exactly; nobody needs to read that.
  const bounded = facts.maximum !== undefined && facts.maximum < Number.MAX_SAFE_INTEGER;
  const highest = bounded ? ` to ${facts.maximum}` : isAbove ? "" : " up";
  return `${kind} ${lowest}${highest}${unit}`;
}

function defaultText(facts: FieldSchema): string | undefined {
  const value = facts.default;
  if (value === undefined || value === false) return undefined;
  if (Array.isArray(value) && value.length === 0) return undefined;
  return facts.unit === undefined ? flagText(value) : `${flagText(value)} ${facts.unit}`;
}

function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, index) => index);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      next[j] = Math.min(row[j] + 1, next[j - 1] + 1, row[j - 1] + (a[i - 1] === b[j - 1] ? 0 : 1));
    }
    row = next;
  }
  return row[b.length];
}
