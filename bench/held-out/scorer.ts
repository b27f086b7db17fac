/** Scores held-out texts over HTTP as lm-eval does: token-id prompts with `echo` and `logprobs`. */

import { readFile } from "node:fs/promises";
import path from "node:path";

import { loadTokenizer } from "../../core/model/tokenizer/tokenizer.ts";
import { cutWindows, scoreLogprobs, type WindowScore } from "./windows.ts";

/** Deadline of one request, milliseconds. */
const TIMEOUT_MS = 120_000;

/** One domain of a model's eval/reference.json. */
export interface ReferenceDomain {
  readonly tokens: number;
  readonly windows: number;
  readonly perplexity: number;
  /** Mean negative log-likelihood per scored token of each window, nats. */
  readonly window_nll: readonly number[];
}

/** What a model's held-out texts are known to score. */
export interface Reference {
  readonly method: { readonly window: number };
  readonly domains: Readonly<Record<string, ReferenceDomain>>;
}

/** Reads MODEL/eval/reference.json. */
export async function readReference(modelDirectory: string): Promise<Reference> {
  const file = path.join(modelDirectory, "eval/reference.json");
  return JSON.parse(await readFile(file, "utf8")) as Reference;
}

/** Where a model is served. */
export interface ScoringTarget {
  /** Scheme, host and port. */
  readonly url: string;
  readonly model: string;
}

async function post(url: string, body: unknown): Promise<unknown> {
  const response = await fetch(url, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
    signal: AbortSignal.timeout(TIMEOUT_MS),
  });
  const text = await response.text();
  if (!response.ok) throw new Error(`${url}: HTTP ${response.status} ${text}`);
  return JSON.parse(text);
}

/**
 * The windows of a domain's text.
 * Throws where their number of tokens is not the reference's: then the tokenizer is another one.
 */
export async function domainWindows(
  modelDirectory: string,
  reference: Reference,
  domain: string,
): Promise<number[][]> {
  const tokenizer = await loadTokenizer(modelDirectory);
  if (!tokenizer) throw new Error(`${modelDirectory} has no tokenizer.json`);
  const text = await readFile(path.join(modelDirectory, "eval", `${domain}.txt`), "utf8");
  const tokens = tokenizer.encode(text, { addSpecialTokens: false });
  const expected = reference.domains[domain].tokens;
  if (tokens.length !== expected)
    throw new Error(`${domain}.txt has ${tokens.length} tokens, the reference has ${expected}`);
  return cutWindows(tokens, reference.method.window);
}

/** Scores one window on its own from position 0. */
export async function scoreWindow(
  target: ScoringTarget,
  window: readonly number[],
): Promise<WindowScore> {
  const answer = (await post(`${target.url}/v1/completions`, {
    model: target.model,
    prompt: window,
    echo: true,
    logprobs: 1,
    max_tokens: 1,
    temperature: 0,
    seed: 1234,
  })) as { choices: { logprobs: { token_logprobs: (number | null)[] } }[] };
  const logprobs = answer.choices[0].logprobs.token_logprobs;
  // The answer's last log-probability is that of the token generated after the window.
  return scoreLogprobs(logprobs.slice(0, window.length));
}
