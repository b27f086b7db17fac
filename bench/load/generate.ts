/** One run of the load generator against one server: prompts, warm-up, the measured load, its figures. */

import { readFile } from "node:fs/promises";
import path from "node:path";

import { loadTokenizer } from "../../core/model/tokenizer/tokenizer.ts";
import { arrivalTimes } from "./arrivals.ts";
import { firstServedModel, sendRequest, type Target } from "./client.ts";
import { randomPrompts, readTexts, textPrompts, type Prompt } from "./dataset.ts";
import { serviceLevels, type LoadOptions } from "./options.ts";
import { seededRandom, type Random } from "../../core/random.ts";
import { runLoad } from "./run.ts";
import { summarize, type LoadSummary, type RequestRecord } from "./statistics.ts";

/** A run's figures with the records that they come from. */
export interface LoadFigures {
  readonly model: string;
  readonly summary: LoadSummary;
  readonly records: readonly RequestRecord[];
}

async function vocabularySize(directory: string): Promise<number> {
  const config = JSON.parse(await readFile(path.join(directory, "config.json"), "utf8")) as {
    vocab_size: number;
  };
  return config.vocab_size;
}

/** Prompts as the endpoint takes them: token ids for completions, their text for chat. */
async function makePrompts(options: LoadOptions, random: Random, count: number): Promise<Prompt[]> {
  const { dataset, endpoint, inputLen, model } = options;
  if (dataset === "random" && endpoint === "completions")
    return randomPrompts(count, inputLen, await vocabularySize(model), random);
  const tokenizer = await loadTokenizer(model);
  if (!tokenizer)
    throw new Error(`${model} has no tokenizer.json: only random completions will do`);
  const prompts =
    dataset === "random"
      ? randomPrompts(count, inputLen, await vocabularySize(model), random)
      : textPrompts(await readTexts(path.join(model, "eval")), count, inputLen, random, (text) =>
          tokenizer.encode(text, { addSpecialTokens: false }),
        );
  return endpoint === "completions" ? prompts : prompts.map((ids) => tokenizer.decode(ids));
}

/**
 * Runs the load that the options describe.
 * Throws where it can not begin; requests that fail are counted.
 */
export async function generateLoad(
  options: LoadOptions,
  onProgress?: (done: number) => void,
): Promise<LoadFigures> {
  const random = seededRandom(options.seed);
  const model = options.servedModelName ?? (await firstServedModel(options.url, options.apiKey));
  const { numWarmups } = options;
  const prompts = await makePrompts(options, random, options.numPrompts + numWarmups);
  const target: Target = {
    baseUrl: options.url.replace(/\/$/, ""),
    endpoint: options.endpoint,
    model,
    apiKey: options.apiKey,
    extraBody: {
      temperature: options.temperature,
      ...(options.ignoreEos ? { ignore_eos: true } : {}),
      return_token_ids: true,
    },
    outputTokens: options.outputLen,
    timeoutMs: options.requestTimeout * 1000,
  };
  const send = (prompt: Prompt) => sendRequest(target, prompt);
  for (const prompt of prompts.splice(0, numWarmups)) await send(prompt);
  let done = 0;
  const { records, durationSeconds } = await runLoad({
    prompts,
    arrivals: arrivalTimes(
      { requestRate: options.requestRate ?? Infinity, burstiness: options.burstiness },
      prompts.length,
      random,
    ),
    maxConcurrency: options.maxConcurrency ?? Infinity,
    send,
    onRecord: () => onProgress?.(++done),
  });
  const summary = summarize(records, durationSeconds, serviceLevels(options.goodput));
  return { model, summary, records };
}
