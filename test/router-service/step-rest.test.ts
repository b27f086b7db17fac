import assert from "node:assert/strict";
import { test } from "node:test";

import { createStepRest } from "../../router-service/step-rest.ts";

const decodes = [{ requestId: "a", task: "t", phase: "decode" as const, numTokens: 1 }];
const prompts = [...decodes, { ...decodes[0], phase: "prefill" as const }];

test("what a step takes beside its layers is counted once where they overlap, and apart for prompts", () => {
  const rest = createStepRest();
  assert.deepEqual(rest.restMs(), { decode: undefined, prefill: undefined });
  // Two micro-batches: 10 to 40 and 30 to 60, then 70 to 80, of a step from 0 to 100.
  rest.onLayer(30, 40);
  rest.onLayer(30, 60);
  rest.onLayer(10, 80);
  // This one is of the next step, which began before this one ended.
  rest.onLayer(20, 130);
  rest.onStep({ startedAt: 0, finishedAt: 100, sequences: decodes });
  rest.onStep({ startedAt: 90, finishedAt: 140, sequences: prompts });
  assert.deepEqual(rest.restMs(), { decode: 40, prefill: 30 });
});

test("the rest is the median of the steps, and steps without an MoE layer do not count", () => {
  const rest = createStepRest();
  for (const [step, ms] of [50, 7, 9, 8, 900].entries()) {
    rest.onLayer(10, 1000 * step + 10);
    rest.onStep({ startedAt: 1000 * step, finishedAt: 1000 * step + 10 + ms, sequences: decodes });
  }
  rest.onStep({ startedAt: 9000, finishedAt: 9001, sequences: decodes });
  assert.deepEqual(rest.restMs(), { decode: 9, prefill: undefined });
});
