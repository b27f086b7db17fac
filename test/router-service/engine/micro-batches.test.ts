import assert from "node:assert/strict";
import { describe, it } from "node:test";

import fc from "fast-check";

import { mergeResults, splitBatch } from "../../../router-service/engine/micro-batches.ts";
import type { StepBatch, StepResult } from "../../../router-service/engine/model-runner.ts";
import { batchOf } from "../../support/step-batch.ts";

/** Sequences of these lengths, all tokens of all of them different. */
function batch(lengths: readonly number[]): StepBatch {
  let next = 100;
  return batchOf(
    lengths.map((length, row) => ({
      tokenIds: Array.from({ length }, () => next++),
      from: row * 3,
      blocks: [row * 2, row * 2 + 1],
    })),
    false,
  );
}

/** What a token is, wherever it stands in a batch. */
function tokensOf({ tokenIds, positions, sequenceRows, blockTables }: StepBatch) {
  return Array.from(tokenIds, (id, i) => [id, positions[i], blockTables[sequenceRows[i]]]);
}

/** A result that tells which tokens and samples it is of. */
const resultOf = ({ tokenIds, samples }: StepBatch): StepResult => ({
  samples: samples.map(({ token }) => ({
    candidateIds: Uint32Array.of(tokenIds[token]),
    candidateLogits: Float32Array.of(0),
    logSumExp: 0,
    targetLogit: Number.NaN,
  })),
  routing: new Map(
    [1, 2].map((layer) => {
      const both = [...tokenIds].flatMap((id) => [id, id * layer]);
      return [layer, { ids: Uint32Array.from(both), weights: Float32Array.from(both), topK: 2 }];
    }),
  ),
});

const lengths = fc
  .array(fc.integer({ min: 1, max: 40 }), { minLength: 1, maxLength: 12 })
  .filter((all) => all.reduce((sum, one) => sum + one) > 1);

describe("a batch in two", () => {
  it("has every token once, in order, at its position and in its sequence's blocks", () => {
    fc.assert(
      fc.property(lengths, (all) => {
        const whole = batch(all);
        const { halves } = splitBatch(whole);
        assert.deepEqual(halves.flatMap(tokensOf), tokensOf(whole));
        for (const half of halves) {
          assert.equal(half.sequenceRows[0], 0);
          assert.equal(half.blockTables.length, (half.sequenceRows.at(-1) ?? 0) + 1);
        }
      }),
    );
  });

  it("has halves that differ by a quarter of the tokens at most, and says whether a sequence is in both", () => {
    fc.assert(
      fc.property(lengths, (all) => {
        const whole = batch(all);
        const { halves, straddles } = splitBatch(whole);
        const [first, second] = halves.map(({ tokenIds }) => tokenIds.length);
        assert.ok(first > 0 && second > 0);
        assert.ok(Math.abs(first - second) <= Math.max(1, whole.tokenIds.length / 4 + 1));
        const [a, b] = halves.map(({ blockTables }) => blockTables);
        assert.equal(straddles, a.at(-1) === b[0]);
      }),
    );
  });

  it("is cut between sequences where that is near the middle", () => {
    assert.equal(splitBatch(batch([1, 1, 1, 1])).straddles, false);
    const { halves, straddles } = splitBatch(batch([18, 14]));
    assert.deepEqual([straddles, halves[0].tokenIds.length], [false, 18]);
    assert.equal(splitBatch(batch([30, 2])).straddles, true);
  });

  it("gives the results of the whole when put together again", () => {
    fc.assert(
      fc.property(lengths, (all) => {
        const whole = batch(all);
        const [first, second] = splitBatch(whole).halves;
        assert.deepEqual(mergeResults([resultOf(first), resultOf(second)]), resultOf(whole));
      }),
    );
  });

  it("can not be had of one token", () => {
    assert.throws(() => splitBatch(batch([1])), /batch of 1 tokens/);
  });
});
