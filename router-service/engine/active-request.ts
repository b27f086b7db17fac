/** One request inside the engine: its sequence, its reader, and what its sampling depends on. */

import type { BatchPart, SampleWish } from "./batch.ts";
import { EventQueue } from "./event-queue.ts";
import type { SampleLogits } from "./model-runner.ts";
import type { EngineObserver, RequestTimeline } from "./observer.ts";
import { uniformAt } from "./random.ts";
import type { EngineEvent, EngineRequest, FinishReason, PositionLogprobs } from "./request.ts";
import {
  choosesMostLikely,
  sampleRequirements,
  sampleToken,
  targetLogprobs,
  tokenLogprobs,
  type SamplingState,
} from "./sampler.ts";
import { createSequence, numGenerated, type Sequence } from "./sequence.ts";

/** Longest delay that a timer takes. */
const MAX_TIMER_MS = 2 ** 31 - 1;

/** What a request needs to know of the engine around it. */
export interface ActiveRequestOptions {
  readonly eosTokenIds: readonly number[];
  /** Seed where the request brings none. */
  readonly randomSeed: () => number;
  /** Milliseconds of performance.now(). */
  readonly now: () => number;
  readonly observer: EngineObserver;
}

/** Turns sampled rows into events, and keeps the request's times; it lives until the engine ends it. */
export class ActiveRequest {
  readonly request: EngineRequest;
  readonly sequence: Sequence;
  readonly events = new EventQueue<EngineEvent>();
  /** Token events that the reader has taken. */
  numDelivered = 0;
  scheduledAt: number | undefined;
  unwatch: () => void = () => {};
  readonly #options: ActiveRequestOptions;
  readonly #seed: number;
  readonly #endingTokenIds: readonly number[];
  readonly #promptTokenIds: ReadonlySet<number>;
  readonly #generatedCounts = new Map<number, number>();
  readonly #promptLogprobs: (PositionLogprobs | undefined)[] = [undefined];
  readonly #arrivedAt: number;
  #promptDone = false;
  #firstTokenAt: number | undefined;
  #lastTokenAt: number | undefined;

  constructor(request: EngineRequest, options: ActiveRequestOptions) {
    const { sampling, promptTokenIds } = request;
    this.request = request;
    this.sequence = createSequence({
      id: request.id,
      promptTokenIds,
      maxTokens: sampling.maxTokens,
      wantsPromptLogprobs: sampling.promptLogprobs !== undefined,
    });
    this.#options = options;
    this.#seed = sampling.seed ?? options.randomSeed();
    const eosTokenIds = sampling.ignoreEos ? [] : options.eosTokenIds;
    this.#endingTokenIds = [...new Set([...eosTokenIds, ...sampling.stopTokenIds])];
    this.#promptTokenIds = new Set(sampling.repetitionPenalty === 1 ? [] : promptTokenIds);
    this.#arrivedAt = request.arrivedAt ?? options.now();
  }

  /** What must be read back for the next token. */
  nextWish(): SampleWish {
    return sampleRequirements(this.request.sampling, this.#state());
  }

  /** Whether the next token is the most likely one, whatever the logits are. */
  choosesMostLikely(): boolean {
    return choosesMostLikely(this.request.sampling, this.#state());
  }

  /** Whether the next token is the last whatever it is. */
  endsNext(): boolean {
    return numGenerated(this.sequence) + 1 >= this.request.sampling.maxTokens;
  }

  /** What must be read back for a token of the prompt. */
  promptWish(): SampleWish {
    const numCandidates = Math.max(1, this.request.sampling.promptLogprobs ?? 0);
    return { numCandidates, fullLogits: false };
  }

  /**
   * Takes a committed chunk's samples: yields the prompt's log-probabilities once the prompt is computed, and the next
   * token. Returns why the sequence is finished, if it is. Throws BrokenLogitsError.
   */
  take(part: BatchPart, samples: readonly SampleLogits[]): FinishReason | undefined {
    const { sequence } = this;
    const { promptLogprobs, maxTokens } = this.request.sampling;
    for (let i = 0; i < part.numPromptSamples; i++) {
      const target = sequence.tokenIds[this.#promptLogprobs.length];
      const logits = samples[part.firstSample + i];
      this.#promptLogprobs.push(targetLogprobs(logits, target, promptLogprobs ?? 0));
    }
    if (!this.#promptDone && sequence.numComputed >= sequence.promptLength) {
      this.#promptDone = true;
      this.events.push({
        type: "prompt",
        cachedTokens: sequence.cachedTokens ?? 0,
        ...(promptLogprobs !== undefined && { promptLogprobs: this.#promptLogprobs }),
      });
      if (maxTokens === 0) return this.#finish("length");
    }
    if (!part.samplesNext) return undefined;
    return this.#takeToken(samples[part.firstSample + part.numPromptSamples]);
  }

  /** Tells of the request's abort and of its time running out, until `unwatch`. */
  watch(onAbort: () => void, onTimeout: () => void, timeoutMs: number): void {
    const { signal } = this.request;
    const leftMs = timeoutMs - (this.#options.now() - this.#arrivedAt);
    const timer = setTimeout(onTimeout, Math.min(Math.max(0, leftMs), MAX_TIMER_MS));
    signal.addEventListener("abort", onAbort);
    this.unwatch = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", onAbort);
    };
  }

  timeline(outcome: RequestTimeline["outcome"], completionTokens: number): RequestTimeline {
    const { id, task, sampling, traceContext } = this.request;
    return {
      id,
      task,
      arrivedAt: this.#arrivedAt,
      scheduledAt: this.scheduledAt,
      firstTokenAt: this.#firstTokenAt,
      lastTokenAt: this.#lastTokenAt,
      finishedAt: this.#options.now(),
      promptTokens: this.sequence.promptLength,
      lookedUpTokens: this.sequence.wantsPromptLogprobs ? 0 : this.sequence.promptLength,
      cachedTokens: this.sequence.cachedTokens ?? 0,
      completionTokens,
      maxTokens: sampling.maxTokens,
      outcome,
      traceContext,
    };
  }

  #takeToken(logits: SampleLogits): FinishReason | undefined {
    const { sequence, request } = this;
    const { sampling } = request;
    const uniform = sampling.temperature === 0 ? 0 : uniformAt(this.#seed, numGenerated(sequence));
    const tokenId = sampleToken(logits, sampling, this.#state(), uniform);
    sequence.tokenIds.push(tokenId);
    this.#generatedCounts.set(tokenId, (this.#generatedCounts.get(tokenId) ?? 0) + 1);
    this.#noteTime();
    const logprobs =
      sampling.logprobs === undefined
        ? {}
        : { logprobs: tokenLogprobs(logits, tokenId, sampling.logprobs) };
    if (this.#endingTokenIds.includes(tokenId)) {
      return this.#finish("stop", { stopTokenId: tokenId, ...logprobs });
    }
    this.events.push({ type: "token", tokenId, ...logprobs });
    return numGenerated(sequence) === sampling.maxTokens ? this.#finish("length") : undefined;
  }

  #finish(
    reason: FinishReason,
    ending?: { readonly stopTokenId: number; readonly logprobs?: PositionLogprobs },
  ): FinishReason {
    this.events.push({ type: "finish", reason, ...ending });
    return reason;
  }

  #noteTime(): void {
    const now = this.#options.now();
    const gap = this.#lastTokenAt === undefined ? undefined : now - this.#lastTokenAt;
    this.#firstTokenAt ??= now;
    this.#lastTokenAt = now;
    this.#options.observer.onToken?.(this.request.id, gap);
  }

  #state(): SamplingState {
    return {
      promptTokenIds: this.#promptTokenIds,
      generatedCounts: this.#generatedCounts,
      numGenerated: numGenerated(this.sequence),
      endingTokenIds: this.#endingTokenIds,
    };
  }
}
