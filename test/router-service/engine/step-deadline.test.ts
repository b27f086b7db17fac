import assert from "node:assert/strict";
import { describe, it } from "node:test";

import { RequestTimeoutError } from "../../../router-service/engine/errors.ts";
import {
  StepTimeoutError,
  withinStepTimeout,
} from "../../../router-service/engine/step-failure.ts";
import { collect, engineRequest, toyEngine } from "../../support/engine-requests.ts";
import { toyContinuation } from "../../support/toy-runner.ts";
import { waitFor } from "../../../bench/rig/wait-for.ts";

describe("a step's deadline", () => {
  it("does not count the time that others compute", async () => {
    const away = new Promise<string>((resolve) => setTimeout(resolve, 120, "sums"));
    let back = false;
    void away.then(() => (back = true));
    const lastAwayAt = () => (back ? -Infinity : performance.now());
    assert.equal(await withinStepTimeout(away, 30, lastAwayAt), "sums");
  });

  it("is over when the device alone took so long, from the others' last answer on", async () => {
    const startedAt = performance.now();
    const lastAwayAt = () => startedAt + 60;
    await assert.rejects(
      withinStepTimeout(new Promise(() => {}), 40, lastAwayAt),
      StepTimeoutError,
    );
    const tookMs = performance.now() - startedAt;
    assert.ok(tookMs >= 98 && tookMs < 1000, `${tookMs} ms`);
  });
});

it("a request whose time is over while its step waits for experts fails by them, the others of its step go on", async () => {
  const held = Promise.withResolvers<void>();
  let steps = 0;
  const { engine } = toyEngine(
    {
      numBlocks: 8,
      beforeStep: async () => {
        if (++steps === 2) await held.promise;
      },
    },
    { requestTimeoutMs: 60_000, waitsFor: () => "experts without a living copy: shard 1" },
  );
  const prompt = [1, 2, 3];
  const staying = collect(engine, engineRequest(prompt, { maxTokens: 4 }));
  const late = { arrivedAt: performance.now() - 59_900 };
  const failed = assert.rejects(
    collect(engine, engineRequest([4, 5], {}, late)),
    (error) =>
      error instanceof RequestTimeoutError &&
      /request timeout of 60 s; experts without a living copy: shard 1/.test(error.message),
  );
  await waitFor("a step in flight", () => steps === 2);
  await failed;
  held.resolve();
  assert.deepEqual((await staying).tokenIds, toyContinuation(prompt, 4));
  await engine.close();
});
