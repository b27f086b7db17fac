/** The seam between the engine's bookkeeping and the device that computes a step. */

import type { Context } from "@opentelemetry/api";

import type { Routing } from "./run-experts.ts";

/** Tokens of one step, prefill chunks and decodes together, as the device needs them. */
export interface StepBatch {
  /** Input token ids [numTokens]; of a step that `follows`, rows of the step before's samples. */
  readonly tokenIds: Uint32Array;
  /** The step before is still in flight, and the input tokens are the most likely candidates of its rows. */
  readonly follows?: boolean;
  /** Position of each token in its sequence [numTokens]. */
  readonly positions: Uint32Array;
  /** Row of `blockTables` that each token belongs to [numTokens], ascending from 0, no row left out. */
  readonly sequenceRows: Uint32Array;
  /** KV block ids of each sequence of the step, in order of position. */
  readonly blockTables: readonly (readonly number[])[];
  /** Tokens whose next-token logits are wanted, in ascending order of `token`. */
  readonly samples: readonly SampleRow[];
}

/** One request for next-token logits. */
export interface SampleRow {
  /** Index of the token in the batch. */
  readonly token: number;
  /** Most likely candidates wanted, 1 to MAX_CANDIDATES. */
  readonly numCandidates: number;
  /** The whole row of logits is wanted as well. */
  readonly fullLogits: boolean;
  /** A token id whose logit is wanted whatever its rank. */
  readonly targetTokenId?: number;
}

/** Candidates that a runner returns at most. */
export const MAX_CANDIDATES = 64;

/** Next-token logits of one sampled row. */
export interface SampleLogits {
  /** Most likely token ids, by logit descending, ties by lower id [numCandidates]. */
  readonly candidateIds: Uint32Array;
  /** Their logits [numCandidates]. */
  readonly candidateLogits: Float32Array;
  /** Natural logarithm of the sum over the vocabulary of exp(logit). */
  readonly logSumExp: number;
  /** Logit of the row's targetTokenId; NaN where none was given. */
  readonly targetLogit: number;
  /** Logits [vocabSize] where fullLogits was asked for. */
  readonly logits?: Float32Array;
}

/** What a step gives back, in one read-back. */
export interface StepResult {
  /** One per SampleRow, in its order. */
  readonly samples: readonly SampleLogits[];
  /** Routing of every MoE layer, by layer index. */
  readonly routing: ReadonlyMap<number, Routing>;
}

/** What the step carries beside its tensors. */
export interface StepContext {
  /** Aborts when the step is no longer wanted. */
  readonly signal: AbortSignal;
  /** Trace context that the step's dispatch spans hang from; absent where the step is not sampled. */
  readonly traceContext?: Context;
}

/** Runs the model's layers over one batch, on a GPU or on the CPU. */
export interface ModelRunner {
  /** Description of what computes: the adapter, or "cpu". */
  readonly adapter: string;
  /** Tokens of a batch at most. */
  readonly maxTokens: number;
  /** Sequences of a batch at most. */
  readonly maxSequences: number;
  /** Sampled rows of a batch at most. */
  readonly maxSamples: number;
  /** KV blocks of BLOCK_SIZE tokens that the runner holds; ids 0 … numBlocks-1. */
  readonly numBlocks: number;
  /** A second step that `follows` may be started while one is in flight. */
  readonly runsAhead: boolean;
  /** One step. Rejects with the expert dispatch's error; the KV entries that it wrote are then to be written again. */
  forward(batch: StepBatch, context: StepContext): Promise<StepResult>;
  /** Settles with the reason when the device is lost; never otherwise. */
  readonly lost: Promise<string>;
  close(): void;
}

/** Tokens of a KV block. */
export const BLOCK_SIZE = 16;
