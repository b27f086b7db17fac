/** One request's tokens, and how far they stand in the KV cache. */

import type { Phase } from "./observer.ts";

/** What the scheduler knows of a request. Only the scheduler changes what is not readonly here, but for `tokenIds`. */
export interface Sequence {
  readonly id: string;
  /** Prompt, then generated tokens. */
  readonly tokenIds: number[];
  readonly promptLength: number;
  /** Tokens to generate at most; with 0 the prompt alone is computed. */
  readonly maxTokens: number;
  /** Every prompt token's log-probability is wanted: each position is computed, none taken from the prefix cache. */
  readonly wantsPromptLogprobs: boolean;
  /** Prompt positions whose next-token logits have been seen; preemption keeps them. */
  numPromptSampled: number;
  /** Tokens whose keys and values stand in `blocks`. */
  numComputed: number;
  /** KV block ids in order of position. */
  blocks: number[];
  /** Prompt tokens found in the prefix cache when it first ran; undefined until then. */
  cachedTokens: number | undefined;
  state: "waiting" | "running" | "ended";
}

/** A sequence that has not run yet. */
export function createSequence(request: {
  readonly id: string;
  readonly promptTokenIds: readonly number[];
  readonly maxTokens: number;
  readonly wantsPromptLogprobs?: boolean;
}): Sequence {
  return {
    id: request.id,
    tokenIds: [...request.promptTokenIds],
    promptLength: request.promptTokenIds.length,
    maxTokens: request.maxTokens,
    wantsPromptLogprobs: request.wantsPromptLogprobs ?? false,
    numPromptSampled: 0,
    numComputed: 0,
    blocks: [],
    cachedTokens: undefined,
    state: "waiting",
  };
}

/** Tokens generated so far. */
export function numGenerated(sequence: Sequence): number {
  return sequence.tokenIds.length - sequence.promptLength;
}

/** Tokens that must be computed before the next one can be sampled. */
export function numUncomputed(sequence: Sequence): number {
  return sequence.tokenIds.length - sequence.numComputed;
}

/** Decode where only the last generated token is to be computed; else prefill, also after a preemption. */
export function phaseOf(sequence: Sequence): Phase {
  return numUncomputed(sequence) === 1 && numGenerated(sequence) > 0 ? "decode" : "prefill";
}

/** Positions whose next-token logits a chunk of `numTokens` is to bring: those of the prompt, and the last one's. */
export function sampledPositions(
  sequence: Sequence,
  numTokens: number,
): { readonly promptFrom: number; readonly promptTo: number; readonly samplesNext: boolean } {
  const end = sequence.numComputed + numTokens;
  const promptFrom = Math.max(sequence.numComputed, sequence.numPromptSampled);
  const promptTo = sequence.wantsPromptLogprobs ? Math.min(end, sequence.promptLength - 1) : 0;
  return {
    promptFrom,
    promptTo: Math.max(promptFrom, promptTo),
    samplesNext: end === sequence.tokenIds.length && numGenerated(sequence) < sequence.maxTokens,
  };
}

/** Sampled rows of a chunk of `numTokens`. */
export function numSampled(sequence: Sequence, numTokens: number): number {
  const { promptFrom, promptTo, samplesNext } = sampledPositions(sequence, numTokens);
  return promptTo - promptFrom + (samplesNext ? 1 : 0);
}
