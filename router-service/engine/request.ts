/** What goes into the engine and what comes out: the API's side of it. */

import type { Context } from "@opentelemetry/api";

/** How the tokens of one completion are chosen; every field is set, defaults are the API's business. */
export interface SamplingParams {
  readonly maxTokens: number;
  readonly minTokens: number;
  /** 0 is greedy. */
  readonly temperature: number;
  readonly topP: number;
  /** 0 is all. */
  readonly topK: number;
  readonly minP: number;
  readonly repetitionPenalty: number;
  readonly frequencyPenalty: number;
  readonly presencePenalty: number;
  /** Token id → value added to its logit. */
  readonly logitBias: ReadonlyMap<number, number>;
  /** Absent: a random one. */
  readonly seed?: number;
  /** Strings that end the text; the text layer's business, the engine does not see text. */
  readonly stop: readonly string[];
  readonly stopTokenIds: readonly number[];
  readonly ignoreEos: boolean;
  /** Most likely tokens to report with each generated token; absent: no log-probabilities. */
  readonly logprobs?: number;
  /** Most likely tokens to report with each prompt token; absent: none. */
  readonly promptLogprobs?: number;
}

/** A prompt to continue, and how. */
export interface EngineRequest {
  readonly id: string;
  readonly promptTokenIds: readonly number[];
  readonly sampling: SamplingParams;
  /** Label of the request's kind in the routing statistics. */
  readonly task: string;
  /** Aborts the sequence: its blocks are free after the step at hand. */
  readonly signal: AbortSignal;
  /** Trace context of the request's server span. */
  readonly traceContext?: Context;
  /** When its client asked for it, milliseconds of performance.now(): its time runs from then; absent: when it is submitted. */
  readonly arrivedAt?: number;
}

/** A token's natural log-probability, before temperature and truncation. */
export interface TokenLogprob {
  readonly tokenId: number;
  readonly logprob: number;
}

/** Log-probabilities of one position: of its own token, and of the most likely ones. */
export interface PositionLogprobs {
  readonly token: TokenLogprob;
  /** Most likely first. */
  readonly top: readonly TokenLogprob[];
}

/** Why a completion ended: by a stop or end-of-sequence token, or at its longest. */
export type FinishReason = "stop" | "length";

/** What a submitted request yields, in this order: prompt once, tokens any number of times, finish once. */
export type EngineEvent =
  | {
      readonly type: "prompt";
      /** Prompt tokens found in the prefix cache. */
      readonly cachedTokens: number;
      /** One per prompt token, undefined for the first; present where asked for. */
      readonly promptLogprobs?: readonly (PositionLogprobs | undefined)[];
    }
  | {
      readonly type: "token";
      readonly tokenId: number;
      readonly logprobs?: PositionLogprobs;
    }
  | {
      readonly type: "finish";
      readonly reason: FinishReason;
      /** The end-of-sequence or stop id that ended it: not yielded as a token, but counted as one. */
      readonly stopTokenId?: number;
      /** Of that id; present where asked for. */
      readonly logprobs?: PositionLogprobs;
    };

/** Counts of the engine at this moment. */
export interface EngineState {
  readonly running: number;
  readonly waiting: number;
  readonly freeBlocks: number;
  readonly totalBlocks: number;
  readonly preemptions: number;
}

/** Turns token-id prompts into token ids. */
export interface Engine {
  /**
   * Queues a request and yields its events; the prompt event comes when the prompt is computed.
   * Throws InvalidRequestError, QueueFullError or UnavailableError on the first `next()`; later UnavailableError,
   * RequestTimeoutError; AbortError when its signal aborts. A reader that leaves before the finish ends the request.
   */
  submit(request: EngineRequest): AsyncIterable<EngineEvent>;
  state(): EngineState;
  /** Undefined while the queue has room, and a place for another request besides; else settles when it may have some: ask again then. Rejects with the signal's reason. */
  room(signal: AbortSignal): Promise<void> | undefined;
  /** Longest prompt and completion together. */
  readonly maxModelLen: number;
  /** Requests that run at a time. */
  readonly maxNumSeqs: number;
  /** Stops the loop; running requests end with UnavailableError. */
  close(): Promise<void>;
}
