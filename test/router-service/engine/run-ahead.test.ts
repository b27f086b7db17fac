import assert from "node:assert/strict";
import { test } from "node:test";

import type { StepBatch } from "../../../router-service/engine/model-runner.ts";
import type { SamplingParams } from "../../../router-service/engine/request.ts";
import { collect, engineRequest, toyEngine } from "../../support/engine-requests.ts";
import { toyContinuation } from "../../support/toy-runner.ts";

const PROMPT = [5, 11, 42];

/** Steps that a request takes, and its tokens. */
async function stepsOf(sampling: Partial<SamplingParams>, runsAhead = true) {
  const { engine, runner } = toyEngine({ numBlocks: 16, runsAhead });
  const { tokenIds } = await collect(engine, engineRequest(PROMPT, sampling));
  await engine.close();
  return { tokenIds, batches: runner.batches };
}

const following = (batches: readonly StepBatch[]) =>
  batches.filter(({ follows }) => follows).length;

test("a greedy sequence's steps follow one another ahead of their tokens, and none is computed in vain at its longest", async () => {
  const { tokenIds, batches } = await stepsOf({ maxTokens: 40 });
  assert.deepEqual(tokenIds, toyContinuation(PROMPT, 40));
  assert.equal(batches.length, 40);
  assert.equal(following(batches), 39);
});

test("a stop id that comes unforeseen costs one step, and nothing comes after it", async () => {
  const expected = toyContinuation(PROMPT, 12);
  const stop = expected[11];
  const first = expected.indexOf(stop);
  const { tokenIds, batches } = await stepsOf({ maxTokens: 40, stopTokenIds: [stop] });
  assert.deepEqual(tokenIds, expected.slice(0, first));
  assert.equal(batches.length, first + 2);
});

for (const [what, sampling] of Object.entries<Partial<SamplingParams>>({
  "a temperature": { temperature: 1, seed: 3 },
  "a logit bias": { logitBias: new Map([[7, 1]]) },
  "a repetition penalty": { repetitionPenalty: 1.5 },
})) {
  test(`with ${what} every step waits for the one before`, async () => {
    const { batches } = await stepsOf({ maxTokens: 10, ...sampling });
    assert.equal(batches.length, 10);
    assert.equal(following(batches), 0);
  });
}

test("a step runs ahead again once minTokens no longer masks the stop ids", async () => {
  const { batches } = await stepsOf({ maxTokens: 10, minTokens: 4, stopTokenIds: [96] });
  assert.equal(following(batches.slice(0, 4)), 0);
  assert.ok(following(batches) > 0);
});

test("a runner that can not run ahead never gets a following step", async () => {
  const { batches } = await stepsOf({ maxTokens: 10 }, false);
  assert.equal(following(batches), 0);
});

test("a request that arrives while steps run ahead gets its first step after at most the two in flight", async () => {
  const { engine, runner } = toyEngine({ numBlocks: 32, runsAhead: true });
  const long = collect(engine, engineRequest(PROMPT, { maxTokens: 60 }));
  while (runner.batches.length < 10) await new Promise((resolve) => setImmediate(resolve));
  const before = runner.batches.length;
  await collect(engine, engineRequest([9, 8], { maxTokens: 1 }));
  const joined = runner.batches.findIndex(({ blockTables }) => blockTables.length === 2);
  assert.ok(joined >= before && joined <= before + 2, `step ${joined}, it came after ${before}`);
  assert.deepEqual((await long).tokenIds, toyContinuation(PROMPT, 60));
});
