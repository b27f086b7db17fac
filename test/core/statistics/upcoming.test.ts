import assert from "node:assert/strict";
import { test } from "node:test";

import fc from "fast-check";

import { AnswerLengths, upcomingTokens } from "../../../core/statistics/upcoming.ts";

const arbitrarySequence = fc.record({
  task: fc.constantFrom("a", "b"),
  prefill: fc.nat(50),
  decode: fc.nat(20),
});
const arbitraryLimits = fc.record({
  maxSequences: fc.integer({ min: 1, max: 4 }),
  maxTokensPerStep: fc.integer({ min: 1, max: 32 }),
});

test("as many tokens come next as are asked for, at most a step more, or all that there are", () => {
  fc.assert(
    fc.property(
      fc.array(arbitrarySequence, { maxLength: 8 }),
      arbitraryLimits,
      fc.nat(200),
      (sequences, limits, tokens) => {
        const next = upcomingTokens(sequences, limits, tokens);
        const sum = next.reduce((total, one) => total + one.tokens, 0);
        const all = sequences.reduce((total, one) => total + one.prefill + one.decode, 0);
        assert.ok(sum <= all && sum <= tokens + limits.maxTokensPerStep);
        assert.ok(sum >= Math.min(tokens, all), `${sum} of ${tokens}, there are ${all}`);
        for (const { task, phase, tokens: some } of next) {
          const most = sequences
            .filter((one) => one.task === task)
            .reduce((total, one) => total + one[phase], 0);
          assert.ok(some > 0 && some <= most);
        }
      },
    ),
  );
});

test("decodes go before prompts, prompts in order of arrival", () => {
  const sequences = [
    { task: "running", prefill: 0, decode: 100 },
    { task: "first", prefill: 30, decode: 5 },
    { task: "second", prefill: 30, decode: 5 },
  ];
  assert.deepEqual(upcomingTokens(sequences, { maxSequences: 8, maxTokensPerStep: 16 }, 32), [
    { task: "running", phase: "decode", tokens: 2 },
    { task: "first", phase: "prefill", tokens: 30 },
  ]);
});

test("answers are expected to be as long as those of their task, never over what they may be", () => {
  const lengths = new AnswerLengths();
  assert.equal(lengths.left("math", 0, 50), 50);
  for (let i = 0; i < 3; i++) lengths.add("math", 40);
  assert.equal(lengths.left("math", 10, 500), 30);
  assert.equal(lengths.left("math", 10, 5), 5);
  assert.equal(
    lengths.left("math", 100, 500),
    10,
    "one that is longer than usual goes on for a while",
  );
});
