/** One run of the load generator against one server: prompts, warm-up, the measured load, its figures. */

import { readFile } from "node:fs/promises";
import path from "node:path";

import { arrivalTimes } from "./arrivals.ts";
import { requestHeaders, sendRequest, type Target } from "./client.ts";
import { randomPrompts, readTexts, textPrompts, type Prompt } from "./dataset.ts";
import { serviceLevels, type LoadOptions } from "./options.ts";
import { seededRandom, type Random } from "./random.ts";
import { runLoad } from "./run.ts";
import { summarize, type LoadSummary, type RequestRecord } from "./statistics.ts";

/** Deadline of the requests that prepare a run, milliseconds. */
const SETUP_TIMEOUT_MS = 30_000;

/** A run's figures with the records that they come from. */
export interface LoadFigures {
  readonly model: string;
  readonly summary: LoadSummary;
  readonly records: readonly RequestRecord[];
}

/** Asks the server for JSON. Throws naming the address and the status where it refuses. */
async function requestJson(
  options: LoadOptions,
  pathname: string,
  body?: Record<string, unknown>,
): Promise<Record<string, unknown>> {
  const url = new URL(pathname, options.url);
  const response = await fetch(url, {
    method: body ? "POST" : "GET",
    headers: requestHeaders(options.apiKey),
    body: body && JSON.stringify(body),
    signal: AbortSignal.timeout(SETUP_TIMEOUT_MS),
  });
  if (!response.ok)
    throw new Error(`${url.href}: HTTP ${response.status} ${await response.text()}`);
  return (await response.json()) as Record<string, unknown>;
}

async function servedModel(options: LoadOptions): Promise<string> {
  if (options.servedModelName !== undefined) return options.servedModelName;
  const models = (await requestJson(options, "/v1/models")).data as { id: string }[];
  if (models.length === 0) throw new Error(`${options.url} serves no model`);
  return models[0].id;
}

async function vocabularySize(directory: string): Promise<number> {
  const config = JSON.parse(await readFile(path.join(directory, "config.json"), "utf8")) as {
    vocab_size: number;
  };
  return config.vocab_size;
}

async function makePrompts(
  options: LoadOptions,
  model: string,
  random: Random,
  count: number,
): Promise<Prompt[]> {
  const length = options.inputLen;
  let prompts: Prompt[];
  if (options.dataset === "random") {
    const vocabSize = await vocabularySize(options.model);
    prompts = randomPrompts(count, length, vocabSize, random);
  } else {
    const texts = await readTexts(path.join(options.model, "eval"));
    prompts = await textPrompts(texts, count, length, random, async (text) => {
      const body = { model, prompt: text, add_special_tokens: false };
      return (await requestJson(options, "/tokenize", body)).tokens as number[];
    });
  }
  if (options.endpoint === "completions") return prompts;
  const texts: Prompt[] = [];
  for (const tokens of prompts)
    texts.push((await requestJson(options, "/detokenize", { model, tokens })).prompt as string);
  return texts;
}

/**
 * Runs the load that the options describe.
 * Throws where it can not begin; requests that fail are counted.
 */
export async function generateLoad(
  options: LoadOptions,
  onProgress?: (done: number, failed: number) => void,
): Promise<LoadFigures> {
  const random = seededRandom(options.seed);
  const model = await servedModel(options);
  const { numWarmups } = options;
  const prompts = await makePrompts(options, model, random, options.numPrompts + numWarmups);
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
  let failed = 0;
  const { records, durationSeconds } = await runLoad({
    prompts,
    arrivals: arrivalTimes(
      { requestRate: options.requestRate ?? Infinity, burstiness: options.burstiness },
      prompts.length,
      random,
    ),
    maxConcurrency: options.maxConcurrency ?? Infinity,
    send,
    onRecord: (record) => {
      if (record.kind === "failed") failed++;
      onProgress?.(++done, failed);
    },
  });
  const summary = summarize(records, durationSeconds, serviceLevels(options.goodput));
  return { model, summary, records };
}
