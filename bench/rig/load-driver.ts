/** Streaming requests, some at a time, over one router or two: what came back, how long tokens let wait, and what failed. */

import { drawBelow, seededRandom } from "../../core/random.ts";
import { greedyBody, streamCompletion } from "./api.ts";

/** A prompt with its undisturbed greedy continuation. */
export interface KnownPrompt {
  readonly ids: readonly number[];
  readonly greedy: readonly number[];
}

/** A request that was sent, and what became of it. */
export interface DrivenRequest {
  readonly prompt: KnownPrompt;
  /** The router that it was sent to, as in LoadOptions.target. */
  readonly url: string;
  readonly startedAt: number;
  readonly tokens: number[];
  /** Longest time without a token so far, from the sending on, milliseconds. */
  longestGapMs: number;
  /** Why it has no whole answer; undefined while it runs and where it has one. */
  failure?: string;
  /** Milliseconds of performance.now; undefined while it runs. */
  endedAt?: number;
}

/** The load. */
export interface LoadOptions {
  readonly prompts: readonly KnownPrompt[];
  /** Requests at a time. */
  readonly concurrency: number;
  /** The router that the next request goes to; it waits while there is none. */
  readonly target: () => string | undefined;
  /** Sends no more requests once it aborts, those that run end in their own time; without it each prompt is sent once. */
  readonly until?: AbortSignal;
  /** With `until`: requests that are sent in any case; 0 unless given. */
  readonly atLeast?: number;
  /** Called for every chunk with tokens, `gapMs` after the one before or the sending. */
  readonly onToken?: (request: DrivenRequest, gapMs: number) => void;
}

/** A load that runs. */
export interface DrivenLoad {
  /** Those that were sent so far. */
  readonly requests: readonly DrivenRequest[];
  /** Resolves when the last one has ended. */
  readonly done: Promise<void>;
}

/** Token ids below this are in the tiny model's vocabulary. */
const VOCABULARY = 384;

/** Two tokens that are nearer than this in an undisturbed run may change places when sums are added in another order. */
const MIN_LEAD = 1e-3;

/** Time between two looks for a router to send to, milliseconds. */
const TARGET_INTERVAL_MS = 20;

/** Sizes of the prompts that are drawn. */
export interface PromptSizes {
  readonly count: number;
  readonly minLength: number;
  readonly maxLength: number;
  readonly maxTokens: number;
}

/** Prompts, and how an undisturbed cluster continues them. */
export interface UndisturbedRun {
  readonly prompts: readonly KnownPrompt[];
  /** Longest time without a token of any request, from its sending on, milliseconds. */
  readonly longestGapMs: number;
}

/**
 * Draws prompts and has a router continue them greedily, `concurrency` at a time. Drawn again are those where two
 * tokens are almost level somewhere: which copy of an expert adds its sum first would decide between them.
 */
export async function runUndisturbed(
  url: string,
  seed: number,
  sizes: PromptSizes,
  concurrency = 16,
): Promise<UndisturbedRun> {
  const random = seededRandom(seed);
  const prompts: KnownPrompt[] = [];
  let longestGapMs = 0;
  async function drawInTurn(): Promise<void> {
    while (prompts.length < sizes.count) {
      const length = sizes.minLength + drawBelow(random, sizes.maxLength - sizes.minLength + 1);
      const ids = Array.from({ length }, () => drawBelow(random, VOCABULARY));
      const greedy: number[] = [];
      let lead = Infinity;
      let lastAt = performance.now();
      const body = { ...greedyBody(ids, sizes.maxTokens), logprobs: 2 };
      for await (const chunk of streamCompletion(url, body)) {
        if (chunk?.error) throw new Error(chunk.error.message);
        const choice = chunk?.choices[0];
        if (choice?.token_ids === undefined || choice.token_ids.length === 0) continue;
        const now = performance.now();
        longestGapMs = Math.max(longestGapMs, now - lastAt);
        lastAt = now;
        greedy.push(...choice.token_ids);
        for (const top of choice.logprobs?.top_logprobs ?? []) {
          const [first, second] = Object.values(top ?? {}).sort((a, b) => b - a);
          lead = Math.min(lead, first - second);
        }
      }
      if (greedy.length !== sizes.maxTokens) throw new Error(`${greedy.length} tokens`);
      if (lead >= MIN_LEAD) prompts.push({ ids, greedy });
    }
  }
  await Promise.all(Array.from({ length: concurrency }, drawInTurn));
  return { prompts: prompts.slice(0, sizes.count), longestGapMs };
}

/** Starts sending; a request that fails is kept as such and not sent again. */
export function driveLoad(options: LoadOptions): DrivenLoad {
  const { prompts, concurrency, until, atLeast = 0 } = options;
  const requests: DrivenRequest[] = [];
  const more = () =>
    until === undefined
      ? requests.length < prompts.length
      : !until.aborted || requests.length < atLeast;
  async function sendInTurn(): Promise<void> {
    while (more()) {
      const url = options.target();
      if (url === undefined) {
        await new Promise((resolve) => setTimeout(resolve, TARGET_INTERVAL_MS));
        continue;
      }
      const prompt = prompts[requests.length % prompts.length];
      const request = { prompt, url, startedAt: performance.now(), tokens: [], longestGapMs: 0 };
      requests.push(request);
      await send(request, options.onToken);
    }
  }
  const done = Promise.all(Array.from({ length: concurrency }, sendInTurn)).then(() => undefined);
  return { requests, done };
}

async function send(request: DrivenRequest, onToken: LoadOptions["onToken"]): Promise<void> {
  const { prompt, url, startedAt, tokens } = request;
  let lastAt = startedAt;
  let whole = false;
  try {
    for await (const chunk of streamCompletion(url, greedyBody(prompt.ids, prompt.greedy.length))) {
      if (chunk === undefined) {
        whole = true;
        continue;
      }
      if (chunk.error) throw new Error(`error event: ${chunk.error.code} ${chunk.error.message}`);
      const ids = chunk.choices[0]?.token_ids ?? [];
      if (ids.length === 0) continue;
      const now = performance.now();
      const gapMs = now - lastAt;
      request.longestGapMs = Math.max(request.longestGapMs, gapMs);
      lastAt = now;
      tokens.push(...ids);
      onToken?.(request, gapMs);
    }
    if (!whole) request.failure = `the stream ended after ${tokens.length} tokens without [DONE]`;
    else if (tokens.length < prompt.greedy.length) request.failure = `${tokens.length} tokens`;
  } catch (error) {
    const { message, cause } = error as Error;
    const why = cause instanceof Error ? ` (${cause.message})` : "";
    request.failure = `after ${tokens.length} tokens: ${message}${why}`;
  } finally {
    request.endedAt = performance.now();
    if (request.failure !== undefined)
      request.longestGapMs = Math.max(request.longestGapMs, request.endedAt - lastAt);
  }
}

/** What a load comes to. */
export interface LoadVerdict {
  readonly requests: number;
  /** Requests without a whole answer. */
  readonly failed: readonly DrivenRequest[];
  /** Requests with a token that the undisturbed run has not. */
  readonly wrong: readonly DrivenRequest[];
  /** Longest time without a token of any request, from its sending on, milliseconds. */
  readonly longestGapMs: number;
}

/** Judges requests that have ended. */
export function judgeLoad(requests: readonly DrivenRequest[]): LoadVerdict {
  return {
    requests: requests.length,
    failed: requests.filter(({ failure }) => failure !== undefined),
    wrong: requests.filter(({ tokens, prompt }) =>
      tokens.some((token, at) => token !== prompt.greedy[at]),
    ),
    longestGapMs: Math.max(0, ...requests.map(({ longestGapMs }) => longestGapMs)),
  };
}

/** The failures of requests in words, each once with its number; at most 20 kinds. */
export function failureText(requests: readonly DrivenRequest[]): string {
  const counts = new Map<string, number>();
  for (const { failure, url } of requests) {
    const text = `${url} ${failure}`;
    counts.set(text, (counts.get(text) ?? 0) + 1);
  }
  return [...counts]
    .map(([text, count]) => `${count} × ${text}`)
    .slice(0, 20)
    .join("\n");
}
