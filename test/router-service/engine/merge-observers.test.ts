import assert from "node:assert/strict";
import { test } from "node:test";

import { ROOT_CONTEXT } from "@opentelemetry/api";

import { mergeObservers } from "../../../router-service/engine/merge-observers.ts";
import type { EngineObserver } from "../../../router-service/engine/observer.ts";

function recorder(heard: string[], name: string): EngineObserver {
  return {
    onToken: (requestId) => void heard.push(`${name} token ${requestId}`),
    onStepFailed: ({ aborted }) => void heard.push(`${name} aborted ${aborted}`),
    onPreemption: (requestId) => void heard.push(`${name} preemption ${requestId}`),
  };
}

test("every observer hears everything, in order", () => {
  const heard: string[] = [];
  const log = { error: () => assert.fail("nothing failed") };
  const merged = mergeObservers(log, recorder(heard, "a"), {}, recorder(heard, "b"));
  merged.onToken?.("r1", undefined);
  merged.onStepFailed?.({ finishedAt: 1, aborted: true });
  merged.onPreemption?.("r2");
  const both = (what: string) => [`a ${what}`, `b ${what}`];
  assert.deepEqual(heard, ["token r1", "aborted true", "preemption r2"].flatMap(both));
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
