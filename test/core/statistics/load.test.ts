import assert from "node:assert/strict";
import { test } from "node:test";

import {
  decayedLoad,
  imbalance,
  meanImbalance,
  selectSeries,
  sumBuckets,
  totalLoad,
  type Bucket,
} from "../../../core/statistics/load.ts";

const SHAPE = { modelName: "tiny", layers: [0, 3], numExperts: 2, topK: 1 };

function bucket(startedAt: number, task: string, tokens: readonly number[]): Bucket {
  const expertTokens = Float64Array.from(tokens);
  const series = [
    {
      task,
      phase: "decode" as const,
      tokens: tokens[0] + tokens[1],
      expertTokens,
      weightSums: expertTokens.map((count) => count / 2),
    },
  ];
  return { startedAt, series };
}

test("a token counts half after each half-life, from the middle of its bucket", () => {
  const buckets = [bucket(100, "a", [8, 0, 4, 4]), bucket(160, "a", [0, 2, 1, 1])];
  assert.deepEqual([...decayedLoad(SHAPE, buckets, 60, 165)], [4, 2, 3, 3]);
  assert.deepEqual([...decayedLoad(SHAPE, buckets, 60, 225)], [2, 1, 1.5, 1.5]);
  assert.deepEqual([...decayedLoad(SHAPE, [], 60, 165)], [0, 0, 0, 0]);
});

test("a bucket that is not over, or of a clock ahead, counts in full", () => {
  const buckets = [bucket(100, "a", [8, 0, 4, 4])];
  for (const now of [101, 50]) {
    assert.deepEqual([...decayedLoad(SHAPE, buckets, 60, now)], [8, 0, 4, 4]);
  }
});

test("decay can be of one task or phase", () => {
  const buckets = [bucket(100, "a", [8, 0, 4, 4]), bucket(100, "b", [0, 2, 1, 1])];
  assert.deepEqual([...decayedLoad(SHAPE, buckets, 60, 105, { task: "b" })], [0, 2, 1, 1]);
  assert.deepEqual([...decayedLoad(SHAPE, buckets, 60, 105, { phase: "prefill" })], [0, 0, 0, 0]);
});

test("buckets add up by task and phase", () => {
  const buckets = [
    bucket(100, "a", [8, 0, 4, 4]),
    bucket(110, "b", [0, 2, 1, 1]),
    bucket(120, "a", [1, 1, 2, 0]),
  ];
  const sum = sumBuckets(SHAPE, buckets);
  assert.deepEqual(
    sum.series.map(({ task, tokens, expertTokens }) => [task, tokens, ...expertTokens]),
    [
      ["a", 10, 9, 1, 6, 4],
      ["b", 2, 0, 2, 1, 1],
    ],
  );
  assert.deepEqual([...sum.series[0].weightSums], [4.5, 0.5, 3, 2]);
  assert.deepEqual([...totalLoad(SHAPE, sum.series)], [9, 3, 7, 5]);
  assert.deepEqual([...totalLoad(SHAPE, selectSeries(sum.series, { task: "b" }))], [0, 2, 1, 1]);
});

test("imbalance is (max - mean) / mean, 0 where even or empty", () => {
  assert.equal(imbalance([2, 2, 2]), 0);
  assert.equal(imbalance([0, 0]), 0);
  assert.equal(imbalance([6, 0, 0]), 2);
  assert.equal(meanImbalance(Float64Array.of(4, 0, 2, 2, 0, 0), 2), 0.5);
  assert.equal(meanImbalance(new Float64Array(4), 2), 0);
});
