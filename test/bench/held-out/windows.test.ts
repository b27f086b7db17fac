import assert from "node:assert/strict";
import { test } from "node:test";

import { cutWindows, perplexity, scoreLogprobs } from "../../../bench/held-out/windows.ts";

test("windows are consecutive, and a last one of a single id is left out", () => {
  assert.deepEqual(cutWindows([1, 2, 3, 4, 5], 2), [
    [1, 2],
    [3, 4],
  ]);
  assert.deepEqual(cutWindows([1, 2, 3, 4, 5], 3), [
    [1, 2, 3],
    [4, 5],
  ]);
});

test("a window is scored without its first token, and a missing log-probability is an error", () => {
  assert.deepEqual(scoreLogprobs([null, -1, -3]), { nllSum: 4, scoredTokens: 2 });
  assert.throws(() => scoreLogprobs([null, -1, null]), /token 2 of 3 has log-probability null/);
});

test("perplexity weighs every scored token alike, whatever its window", () => {
  const scores = [
    { nllSum: 6, scoredTokens: 3 },
    { nllSum: 4, scoredTokens: 1 },
  ];
  assert.ok(Math.abs(perplexity(scores) - Math.exp(2.5)) < 1e-12);
});
