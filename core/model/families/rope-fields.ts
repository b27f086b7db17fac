/** Rotary positions in `config.json`: `rope_theta` with `rope_scaling`, or the `rope_parameters` of transformers 5. */

import { z } from "zod";

import { MAX_SIZE, flag, integer, positive } from "./config-fields.ts";
import type { RopeConfig } from "../config.ts";
import { type ConfigProblem, zodProblems } from "../config-error.ts";
import { isJsonObject, type JsonObject } from "../checkpoint/json-file.ts";

/** RoPE as the config has it, without what the family's attention decides. */
export interface RopeFields extends Pick<RopeConfig, "theta" | "yarn" | "magnitude"> {
  /** What DeepSeek's attention multiplies its scores by beside the usual scale: mscale². */
  readonly scoreFactor: number;
}

/** What a family makes of the options of RoPE. */
export interface RopeRules {
  /** The class's default of `rope_theta`. */
  readonly theta: number;
  /** The family is defined with YaRN. */
  readonly yarn: boolean;
  /** The class's default of `rope_scaling`. */
  readonly whenAbsent?: JsonObject;
}

const SCALING_TYPES: ReadonlySet<unknown> = new Set(["default", "yarn"]);

const atLeastOne = "a number of at least 1";

const scalingSchema = z.strictObject({
  type: z.unknown().optional(),
  rope_type: z.unknown().optional(),
  rope_theta: positive().optional(),
  partial_rotary_factor: z.literal(1, { error: "1: the whole head is turned" }).optional(),
  factor: z.number({ error: atLeastOne }).min(1, { error: atLeastOne }).optional(),
  original_max_position_embeddings: integer(1, MAX_SIZE).optional(),
  attention_factor: positive().optional(),
  beta_fast: positive().default(32),
  beta_slow: positive().default(1),
  mscale: z.number({ error: "a number" }).optional(),
  mscale_all_dim: z.number({ error: "a number" }).optional(),
  truncate: flag(true),
});

/** Keys of a config that hold RoPE's parameters; the newer one first. */
const KEYS = ["rope_parameters", "rope_scaling"] as const;

/**
 * Reads RoPE's options, or lists what the engine does not compute.
 * @param raw a config without nulls
 * @param maxPositions `max_position_embeddings`, where YaRN's own number of positions is not given
 */
export function readRope(
  raw: JsonObject,
  rules: RopeRules,
  maxPositions: number,
): { readonly rope: RopeFields } | { readonly problems: readonly ConfigProblem[] } {
  const problems: ConfigProblem[] = [];
  const theta = z.object({ rope_theta: positive().default(rules.theta) }).safeParse(raw);
  if (!theta.success) problems.push(...zodProblems(theta.error, raw));
  const given = KEYS.filter((key) => raw[key] !== undefined);
  const ropes = given.map((key) => {
    const value = withoutNulls(raw[key]);
    const wrong = scalingProblems(key, value, rules);
    problems.push(...wrong);
    const known = wrong.length === 0 && isJsonObject(value);
    return known ? toRope(value, theta.data?.rope_theta, maxPositions) : undefined;
  });
  if (problems.length === 0 && ropes.length === 2) {
    // The two names of one thing can stand side by side, but not contradict each other.
    const [newer, older] = ropes.map((rope) => JSON.stringify({ ...rope, theta: undefined }));
    if (newer !== older) {
      const expectation = "the same as rope_parameters";
      problems.push({ name: "rope_scaling", value: raw.rope_scaling, expectation });
    }
  }
  if (problems.length > 0) return { problems };
  return {
    rope: ropes[0] ?? toRope(rules.whenAbsent ?? {}, theta.data?.rope_theta, maxPositions),
  };
}

function withoutNulls(value: unknown): unknown {
  if (!isJsonObject(value)) return value;
  return Object.fromEntries(Object.entries(value).filter(([, entry]) => entry !== null));
}

/** What is wrong with the object of parameters under `key`. */
function scalingProblems(key: string, value: unknown, rules: RopeRules): ConfigProblem[] {
  const parsed = scalingSchema.safeParse(value);
  if (!isJsonObject(value)) {
    return [{ name: key, value, expectation: "an object of RoPE's parameters" }];
  }
  const problems: ConfigProblem[] = [];
  const refuse = (name: string, expectation: string) =>
    problems.push({ name: `${key}.${name}`, value: value[name], expectation });
  const supported = rules.yarn ? '"default" or "yarn"' : '"default"';
  for (const name of ["rope_type", "type"]) {
    const known = value[name] === "default" || (rules.yarn && value[name] === "yarn");
    if (value[name] !== undefined && !known) refuse(name, supported);
  }
  const { rope_type: type = value.type, type: olderType = type } = value;
  if (type !== olderType) refuse("type", `the same as rope_type ${JSON.stringify(type)}`);
  // Parameters of another type would only repeat that the type is not known.
  if (type !== undefined && !SCALING_TYPES.has(type)) return problems;
  for (const issue of parsed.error?.issues ?? []) {
    if (issue.code === "unrecognized_keys") {
      for (const name of issue.keys) refuse(name, "nothing: not a parameter of YaRN");
    } else {
      refuse(issue.path.join("."), issue.message);
    }
  }
  if (type === "yarn" && parsed.success) {
    if (parsed.data.factor === undefined) refuse("factor", atLeastOne);
    const { mscale, mscale_all_dim: all } = parsed.data;
    // Hugging Face and DeepSeek's own code differ where only one of the two is given.
    const agreed = all ? Boolean(mscale) : mscale === undefined || mscale === 1;
    if (!agreed) refuse("mscale", `to stand beside mscale_all_dim, which is ${all ?? "missing"}`);
  }
  return problems;
}

/** RoPE of checked parameters (YaRN: arXiv 2309.00071; mscale: DeepSeek-V2, `modeling_deepseek.py`). */
function toRope(parameters: JsonObject, theta = 10000, maxPositions: number): RopeFields {
  const scaling = scalingSchema.parse(parameters);
  const { factor = 1, mscale, mscale_all_dim: all } = scaling;
  const ownTheta = scaling.rope_theta ?? theta;
  if ((parameters.rope_type ?? parameters.type) !== "yarn") {
    return { theta: ownTheta, magnitude: 1, scoreFactor: 1 };
  }
  const magnitudeOf = (scale: number) => (factor > 1 ? 0.1 * scale * Math.log(factor) + 1 : 1);
  const relative = mscale && all ? magnitudeOf(mscale) / magnitudeOf(all) : magnitudeOf(1);
  return {
    theta: ownTheta,
    yarn: {
      factor,
      originalPositions: scaling.original_max_position_embeddings ?? maxPositions,
      betaFast: scaling.beta_fast,
      betaSlow: scaling.beta_slow,
      truncate: scaling.truncate,
    },
    magnitude: scaling.attention_factor ?? relative,
    scoreFactor: all ? magnitudeOf(all) ** 2 : 1,
  };
}
