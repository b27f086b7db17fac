import assert from "node:assert/strict";
import { test } from "node:test";

import { ROOT_CONTEXT } from "@opentelemetry/api";

import { mergeObservers } from "../../../router-service/engine/merge-observers.ts";
import type { EngineObserver } from "../../../router-service/engine/observer.ts";

function recorder(heard: string[], name: string): EngineObserver {
  return {
    onToken: (requestId) => void heard.push(`${name} token ${requestId}`),
    onPreemption: (requestId) => void heard.push(`${name} preemption ${requestId}`),
  };
}

test("every observer hears everything, in order", () => {
  const heard: string[] = [];
  const log = { error: () => assert.fail("nothing failed") };
  const merged = mergeObservers(log, recorder(heard, "a"), {}, recorder(heard, "b"));
  merged.onToken?.("r1", undefined);
  merged.onPreemption?.("r2");
  assert.deepEqual(heard, ["a token r1", "b token r1", "a preemption r2", "b preemption r2"]);
});

test("an observer that throws is logged once and hurts nobody", () => {
  const heard: string[] = [];
  const errors: unknown[] = [];
  const log = { error: (facts: object) => void errors.push(facts) };
  const broken: EngineObserver = {
    onToken: () => {
      throw new Error("broken");
    },
  };
  const merged = mergeObservers(log, broken, recorder(heard, "b"));
  merged.onToken?.("r1", undefined);
  merged.onToken?.("r2", 3);
  assert.deepEqual(heard, ["b token r1", "b token r2"]);
  assert.equal(errors.length, 1);
});

test("the first step context counts, every observer is still asked", () => {
  let asked = 0;
  const first: EngineObserver = { stepContext: () => (asked++, undefined) };
  const second: EngineObserver = { stepContext: () => (asked++, ROOT_CONTEXT) };
  const merged = mergeObservers({ error: () => undefined }, first, second, first);
  assert.equal(merged.stepContext?.([]), ROOT_CONTEXT);
  assert.equal(asked, 3);
});
