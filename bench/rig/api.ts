/** Plain HTTP calls of a cluster's API, for those who look at the bytes rather than through a client library. */

import assert from "node:assert/strict";

import { readEvents } from "../load/event-stream.ts";

/** Deadline of one call, milliseconds. */
const TIMEOUT_MS = 120_000;

/** Usage as every answer has it. */
export interface Usage {
  readonly prompt_tokens: number;
  readonly completion_tokens: number;
  readonly total_tokens: number;
  readonly prompt_tokens_details: { readonly cached_tokens: number };
}

/** A choice of POST /v1/completions. */
export interface CompletionChoice {
  readonly index: number;
  readonly text: string;
  readonly token_ids?: readonly number[];
  readonly finish_reason: string | null;
  readonly logprobs: {
    readonly tokens: readonly string[];
    readonly token_logprobs: readonly (number | null)[];
    readonly top_logprobs: readonly (Readonly<Record<string, number>> | null)[];
    readonly text_offset: readonly number[];
  } | null;
  readonly prompt_logprobs?: readonly (Readonly<
    Record<string, { readonly logprob: number }>
  > | null)[];
}

/** An answer of POST /v1/completions, whole or a chunk of it; an error body has `error` alone. */
export interface Completion {
  readonly id: string;
  readonly choices: readonly CompletionChoice[];
  readonly usage?: Usage | null;
  readonly error?: { readonly message: string; readonly code: string | null };
}

/** POSTs JSON; resolves with the status and the parsed body. */
export async function postJson(
  url: string,
  body: unknown,
): Promise<{ readonly status: number; readonly body: unknown }> {
  const response = await fetch(url, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
    signal: AbortSignal.timeout(TIMEOUT_MS),
  });
  return { status: response.status, body: await response.json() };
}

/** POSTs a completion and fails unless it is answered. */
export async function complete(url: string, body: Record<string, unknown>): Promise<Completion> {
  const answer = await postJson(`${url}/v1/completions`, body);
  assert.equal(answer.status, 200, JSON.stringify(answer.body));
  return answer.body as Completion;
}

/** Token ids of the greedy continuation, past any end-of-sequence id. */
export async function continueGreedily(
  url: string,
  prompt: readonly number[],
  maxTokens: number,
): Promise<{ readonly ids: readonly number[]; readonly usage: Usage }> {
  const { choices, usage } = await complete(url, greedyBody(prompt, maxTokens));
  assert.ok(usage);
  return { ids: choices[0].token_ids ?? [], usage };
}

/** Body of a greedy completion of token ids, or of several prompts of them. */
export function greedyBody(
  prompt: readonly number[] | readonly (readonly number[])[],
  maxTokens: number,
): Record<string, unknown> {
  return {
    prompt,
    max_tokens: maxTokens,
    temperature: 0,
    ignore_eos: true,
    return_token_ids: true,
  };
}

/** Chunks of a streamed completion as they come; "[DONE]" is yielded as undefined. */
export async function* streamCompletion(
  url: string,
  body: Record<string, unknown>,
  signal: AbortSignal = AbortSignal.timeout(TIMEOUT_MS),
): AsyncGenerator<Completion | undefined> {
  const response = await fetch(`${url}/v1/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ ...body, stream: true }),
    signal,
  });
  if (!response.ok || !response.body)
    throw new Error(`HTTP ${response.status} ${await response.text()}`);
  for await (const data of readEvents(response.body))
    yield data === "[DONE]" ? undefined : (JSON.parse(data) as Completion);
}

/** One sample of a metrics page. */
export interface MetricSample {
  readonly name: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly value: number;
}

/** Every sample on /metrics. */
export async function metricSamples(url: string): Promise<MetricSample[]> {
  const response = await fetch(`${url}/metrics`, { signal: AbortSignal.timeout(TIMEOUT_MS) });
  const page = await response.text();
  return page.split("\n").flatMap((line) => {
    const [, name, labels = "", value] = /^(\w[\w:]*)(?:\{(.*)\})? (\S+)$/.exec(line) ?? [];
    if (name === undefined) return [];
    const pairs = [...labels.matchAll(/(\w+)="([^"]*)"/g)].map(([, key, text]) => [key, text]);
    return [
      { name, labels: Object.fromEntries(pairs) as Record<string, string>, value: Number(value) },
    ];
  });
}

/** Sum of a metric's samples on /metrics, over all label values; fails where there is none. */
export async function metric(url: string, name: string): Promise<number> {
  const samples = await metricSamples(url);
  const those = samples.filter((sample) => sample.name === name);
  const names = [...new Set(samples.map((sample) => sample.name))];
  assert.ok(those.length > 0, `no metric ${name} among ${names.join(", ")}`);
  return those.reduce((sum, { value }) => sum + value, 0);
}
