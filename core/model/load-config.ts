/** `config.json` and `generation_config.json` → what the engine knows of a model, or an error that lists every problem. */

import { join } from "node:path";

import { z } from "zod";

import type { GenerationConfig, ModelConfig } from "./config.ts";
import { ModelConfigError, zodProblems } from "./config-error.ts";
import { modelFamilies } from "./families/families.ts";
import { JsonFileError, type JsonObject, readJsonFile } from "./checkpoint/json-file.ts";
import type { ModelFamily } from "./families/model-family.ts";

/** Bytes of a configuration file at most. */
const MAX_CONFIG_BYTES = 4 * 1024 * 1024;

/** Reads the raw object of a directory's `config.json`. Throws JsonFileError where there is none. */
export async function readRawConfig(dir: string): Promise<JsonObject> {
  const file = join(dir, "config.json");
  const raw = await readJsonFile(file, MAX_CONFIG_BYTES);
  if (!raw) throw new JsonFileError(file, "no such file; a model directory holds config.json");
  return raw;
}

/** Reads a model directory's `config.json`. Throws ModelConfigError with every unsupported or impossible value, or JsonFileError. */
export async function readModelConfig(dir: string): Promise<ModelConfig> {
  return parseModelConfig(await readRawConfig(dir), join(dir, "config.json"));
}

/** The parsed content of `config.json` under the house's names. Throws ModelConfigError naming `file`. */
export function parseModelConfig(raw: JsonObject, file: string): ModelConfig {
  const family = modelFamilies.find((family) => typesOf(family).includes(raw.model_type as string));
  if (!family) {
    const known = modelFamilies
      .flatMap(typesOf)
      .map((type) => JSON.stringify(type))
      .join(" or ");
    throw new ModelConfigError(file, [
      { name: "model_type", value: raw.model_type, expectation: known },
    ]);
  }
  const parsed = family.parseConfig(raw);
  if ("problems" in parsed) throw new ModelConfigError(file, parsed.problems);
  return Object.freeze(parsed.config);
}

/** Every `model_type` of a family. */
function typesOf({ modelType, aliases = [] }: ModelFamily): readonly string[] {
  return [modelType, ...aliases];
}

const tokenId = z.int().min(0);
const eosField = z
  .union([tokenId, z.array(tokenId).max(1024)], { error: "a token id or a list of token ids" })
  .nullish();

const generationSchema = z.object({
  eos_token_id: eosField,
  do_sample: z.boolean({ error: "true or false" }).nullish(),
  max_new_tokens: z.int({ error: "a positive integer" }).min(1, "a positive integer").nullish(),
  temperature: bounded("a number from 0 to 100", (value) => value >= 0 && value <= 100),
  top_p: bounded("a number above 0, at most 1", (value) => value > 0 && value <= 1),
  top_k: z.int({ error: "an integer, at least -1" }).min(-1, "an integer, at least -1").nullish(),
  min_p: bounded("a number from 0 to 1", (value) => value >= 0 && value <= 1),
  repetition_penalty: bounded("a number above 0", (value) => value > 0),
});

function bounded(expectation: string, holds: (value: number) => boolean) {
  return z.number({ error: expectation }).refine(holds, { error: expectation }).nullish();
}

/**
 * Reads a directory's `generation_config.json`; where it names no end-of-sequence id, those of `config.json` count.
 * `do_sample: false` makes the default temperature 0. Throws ModelConfigError, or JsonFileError.
 */
export async function readGenerationConfig(
  dir: string,
  config: ModelConfig,
): Promise<GenerationConfig> {
  const file = join(dir, "generation_config.json");
  const raw = (await readJsonFile(file, MAX_CONFIG_BYTES)) ?? {};
  const parsed = generationSchema.safeParse(raw);
  if (!parsed.success) throw new ModelConfigError(file, zodProblems(parsed.error, raw));
  const generation = parsed.data;
  const ownIds = eosList(generation.eos_token_id);
  const eosTokenIds = ownIds ?? (await eosOfModelConfig(dir));
  for (const id of eosTokenIds) {
    if (id >= config.vocabSize) {
      const expectation = `token ids below vocab_size ${config.vocabSize}`;
      throw new ModelConfigError(ownIds ? file : join(dir, "config.json"), [
        { name: "eos_token_id", value: id, expectation },
      ]);
    }
  }
  return {
    eosTokenIds,
    maxNewTokens: generation.max_new_tokens ?? undefined,
    temperature: generation.do_sample === false ? 0 : (generation.temperature ?? undefined),
    topP: generation.top_p ?? undefined,
    // Both 0 and -1 stand for all tokens, in Hugging Face's and in vLLM's files.
    topK: typeof generation.top_k === "number" ? Math.max(0, generation.top_k) : undefined,
    minP: generation.min_p ?? undefined,
    repetitionPenalty: generation.repetition_penalty ?? undefined,
  };
}

async function eosOfModelConfig(dir: string): Promise<readonly number[]> {
  const raw = await readRawConfig(dir);
  const parsed = z.object({ eos_token_id: eosField }).safeParse(raw);
  if (!parsed.success) {
    throw new ModelConfigError(join(dir, "config.json"), zodProblems(parsed.error, raw));
  }
  return eosList(parsed.data.eos_token_id) ?? [];
}

function eosList(value: number | readonly number[] | null | undefined) {
  if (value === null || value === undefined) return undefined;
  return typeof value === "number" ? [value] : value;
}
