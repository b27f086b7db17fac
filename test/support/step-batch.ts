/** Steps to run on a ModelRunner. */

import assert from "node:assert/strict";

import type { StepBatch } from "../../router-service/engine/model-runner.ts";

/** Part of a sequence in a step. */
export interface StepPart {
  readonly tokenIds: readonly number[];
  /** Position of the first of them. */
  readonly from: number;
  readonly blocks: readonly number[];
}

/** The context of a step that nobody aborts. */
export const NEVER = { signal: new AbortController().signal };

/** A step over parts of sequences that wants all logits of every token. */
export function batchOf(parts: readonly StepPart[], fullLogits = true): StepBatch {
  const tokens = parts.flatMap(({ tokenIds }) => tokenIds);
  return {
    tokenIds: Uint32Array.from(tokens),
    positions: Uint32Array.from(
      parts.flatMap(({ tokenIds, from }) => tokenIds.map((_, i) => from + i)),
    ),
    sequenceRows: Uint32Array.from(parts.flatMap(({ tokenIds }, row) => tokenIds.map(() => row))),
    blockTables: parts.map(({ blocks }) => blocks),
    samples: tokens.map((_, token) => ({ token, numCandidates: 1, fullLogits })),
  };
}

/** Largest difference of two rows of values. */
export function distance(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  assert.equal(actual.length, expected.length);
  let largest = 0;
  for (let i = 0; i < expected.length; i++) {
    const difference = Math.abs(actual[i] - expected[i]);
    if (!(difference <= largest)) largest = difference;
  }
  return largest;
}
