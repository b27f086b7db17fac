import assert from "node:assert/strict";
import { test } from "node:test";

import { createQueueWatch } from "../../../router-service/engine/queue-watch.ts";
import { createSequence } from "../../../router-service/engine/sequence.ts";

const LIMITS = { maxSequences: 2, maxTokensPerStep: 16 };

function step(numTokens: number, startedAt: number, finishedAt: number) {
  return { startedAt, finishedAt, sequences: [], numTokens, routing: new Map() };
}

function pending(task: string, promptLength: number, maxTokens: number) {
  const promptTokenIds = Array.from({ length: promptLength }, (_, i) => i);
  return { request: { task }, sequence: createSequence({ id: task, promptTokenIds, maxTokens }) };
}

function ended(task: string, completionTokens: number) {
  const times = { arrivedAt: 0, finishedAt: 1 };
  const prompt = { promptTokens: 1, lookedUpTokens: 1, cachedTokens: 0 };
  return {
    id: "",
    task,
    ...times,
    ...prompt,
    completionTokens,
    maxTokens: 999,
    outcome: "stop" as const,
  };
}

test("what comes next is as long as the pace of late and the answers that ended let expect", () => {
  const watch = createQueueWatch(LIMITS);
  // 10 tokens per second: 100 in ten seconds.
  for (let i = 0; i < 50; i++) watch.observer.onStep?.(step(10, i * 1000, (i + 1) * 1000));
  for (let i = 0; i < 5; i++) watch.observer.onRequest?.(ended("math", 20));
  const one = watch.upcoming([pending("math", 40, 500)]);
  assert.deepEqual(one, [
    { task: "math", phase: "prefill", tokens: 40 },
    { task: "math", phase: "decode", tokens: 20 },
  ]);
  const several = watch.upcoming([
    pending("math", 40, 5),
    pending("law", 60, 3),
    pending("code", 400, 3),
  ]);
  const sum = several.reduce((total, { tokens }) => total + tokens, 0);
  assert.ok(sum >= 100 && sum < 100 + LIMITS.maxTokensPerStep, `${sum}`);
  const code = several.find(({ task }) => task === "code");
  assert.ok(code === undefined || code.tokens < 20, "the third waits for one of two places");
});

test("a running decode goes on by what is left of its answer", () => {
  const watch = createQueueWatch(LIMITS);
  const one = pending("math", 4, 100);
  const { sequence } = one;
  sequence.tokenIds.push(1, 2, 3);
  sequence.numComputed = 6;
  for (let i = 0; i < 5; i++) watch.observer.onRequest?.(ended("math", 10));
  assert.deepEqual(watch.upcoming([one]), [{ task: "math", phase: "decode", tokens: 7 }]);
});

test("nothing pending is nothing to come", () => {
  assert.deepEqual(createQueueWatch(LIMITS).upcoming([]), []);
});
