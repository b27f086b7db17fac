import assert from "node:assert/strict";
import { getEventListeners } from "node:events";
import { describe, it } from "node:test";

import { DispatchTimeoutError } from "../../../router-service/cluster/errors.ts";
import {
  RequestTimeoutError,
  StepFailedError,
  UnavailableError,
} from "../../../router-service/engine/errors.ts";
import type { StepBatch, StepContext } from "../../../router-service/engine/model-runner.ts";
import type { EngineObserver, RequestTimeline } from "../../../router-service/engine/observer.ts";
import { collect, engineRequest, toyEngine } from "../../support/engine-requests.ts";
import { toyContinuation } from "../../support/toy-runner.ts";
import { waitFor } from "../../../bench/rig/wait-for.ts";

const prompt = (length: number, from = 0) =>
  Array.from({ length }, (_, i) => (from * 31 + i * 7) % 97);

/** Steps that stay in flight until they are let go, or their signal aborts. */
function gate() {
  let release = Promise.withResolvers<void>();
  const held: StepContext[] = [];
  return {
    held,
    open: () => {
      release.resolve();
      release = Promise.withResolvers<void>();
    },
    beforeStep: async (_: StepBatch, context: StepContext) => {
      held.push(context);
      const { promise, resolve } = Promise.withResolvers<void>();
      context.signal.addEventListener("abort", () => resolve(), { once: true });
      await Promise.race([release.promise, promise]);
      context.signal.throwIfAborted();
    },
  };
}

const unavailable = (pattern: RegExp) => (error: Error) =>
  error instanceof UnavailableError && pattern.test(error.message);

describe("an engine whose step fails", () => {
  it("fails that step's requests, goes on with the waiting ones and caches nothing of the step", async () => {
    let numSteps = 0;
    const { engine } = toyEngine(
      {
        numBlocks: 8,
        beforeStep: () => {
          if (++numSteps === 2) throw new DispatchTimeoutError("shard 1", 3, 2000);
        },
      },
      { maxNumSeqs: 1, maxNumBatchedTokens: 32 },
    );
    const failing = collect(engine, engineRequest(prompt(70)));
    const waiting = collect(engine, engineRequest(prompt(20, 4)));
    await assert.rejects(failing, unavailable(/shard 1 did not answer a dispatch of layer 3/));
    assert.deepEqual((await waiting).tokenIds, toyContinuation(prompt(20, 4), 8));
    const again = await collect(engine, engineRequest(prompt(70)));
    assert.equal(again.cachedTokens, 32, "only what the first step computed");
    assert.deepEqual(again.tokenIds, toyContinuation(prompt(70), 8));
    assert.equal(engine.state().freeBlocks, 8);
    await engine.close();
  });

  it("fails with the fault itself where nothing is away, and goes on", async () => {
    const fault = new RangeError("a step with 9 tokens, at most 8");
    let numSteps = 0;
    const { engine } = toyEngine({
      numBlocks: 8,
      beforeStep: () => {
        if (++numSteps === 1) throw fault;
      },
    });
    await assert.rejects(collect(engine, engineRequest(prompt(3))), (error: Error) => {
      assert.ok(error instanceof StepFailedError && !(error instanceof UnavailableError));
      return error.cause === fault;
    });
    const next = await collect(engine, engineRequest(prompt(3)));
    assert.deepEqual(next.tokenIds, toyContinuation(prompt(3), 8));
    await engine.close();
  });

  it("fails everything and says so when a step does not return in time", async () => {
    const held: StepContext[] = [];
    const { engine } = toyEngine(
      {
        numBlocks: 8,
        beforeStep: (_, context) => {
          held.push(context);
          return new Promise(() => {}); // a device that hangs heeds no signal either
        },
      },
      { maxNumSeqs: 1, stepTimeoutMs: 40 },
    );
    const ended = [3, 4].map((length) =>
      assert.rejects(
        collect(engine, engineRequest(prompt(length))),
        unavailable(/a step did not return within 0\.04 s/),
      ),
    );
    await Promise.all(ended);
    assert.match(await engine.lost, /a step did not return within 0\.04 s/);
    assert.equal(held.length, 1);
    assert.equal(held[0].signal.aborted, true);
    await assert.rejects(
      collect(engine, engineRequest(prompt(3))),
      unavailable(/did not return within/),
    );
    await engine.close();
  });

  it("goes on while new requests are refused, fails what runs and waits while it is hopeless, and serves again afterwards", async () => {
    const { held, open, beforeStep } = gate();
    let [reason, refusal]: (string | undefined)[] = [];
    const { engine } = toyEngine(
      {
        numBlocks: 8,
        beforeStep: async (...step) => {
          await beforeStep(...step);
          if (reason !== undefined) throw new UnavailableError(reason);
        },
      },
      { maxNumSeqs: 1, available: () => reason ?? refusal, hopeless: () => reason },
    );
    const ask = (length: number) => collect(engine, engineRequest(prompt(length)));
    const noRoom = unavailable(/layer 2 expert 5 has no living copy/);
    const refusals = [ask(3), ask(4)].map((each) => assert.rejects(each, noRoom));
    await waitFor("a step in flight", () => held.length === 1);
    refusal = "no shard is left";
    await assert.rejects(ask(5), unavailable(/no shard/));
    open();
    await waitFor("its next step", () => held.length === 2);
    reason = "layer 2 expert 5 has no living copy";
    open();
    await Promise.all(refusals);
    await assert.rejects(ask(5), noRoom);
    reason = refusal = undefined;
    const later = collect(engine, engineRequest(prompt(6), { maxTokens: 1 }));
    await waitFor("the next step", () => held.length === 3).then(open);
    assert.deepEqual((await later).tokenIds, toyContinuation(prompt(6), 1));
    assert.equal(engine.state().freeBlocks, 8);
    await engine.close();
  });

  it("fails everything and says so when the device is lost", async () => {
    const { held, beforeStep } = gate();
    const { engine, runner } = toyEngine({ numBlocks: 8, beforeStep });
    const running = collect(engine, engineRequest(prompt(3)));
    await waitFor("a step in flight", () => held.length === 1);
    runner.lose("out of memory");
    await assert.rejects(running, unavailable(/the device was lost: out of memory/));
    assert.equal(await engine.lost, "the device was lost: out of memory");
    await assert.rejects(collect(engine, engineRequest(prompt(3))), unavailable(/out of memory/));
    await engine.close();
  });

  it("ends what runs and waits when it is closed, and takes nothing more", async () => {
    const { held, beforeStep } = gate();
    const { engine } = toyEngine({ numBlocks: 8, beforeStep }, { maxNumSeqs: 1 });
    const ended = [3, 4].map((length) =>
      assert.rejects(collect(engine, engineRequest(prompt(length))), unavailable(/is stopping/)),
    );
    await waitFor("a step in flight", () => held.length === 1);
    await engine.close();
    await Promise.all(ended);
    assert.equal(held[0].signal.aborted, true);
    await assert.rejects(collect(engine, engineRequest(prompt(3))), unavailable(/is stopping/));
    assert.deepEqual(engine.state(), {
      running: 0,
      waiting: 0,
      freeBlocks: 8,
      totalBlocks: 8,
      preemptions: 0,
    });
  });
});

describe("a request that is not wanted any more", () => {
  it("ends at once when its signal aborts, its blocks are free after the step", async () => {
    const { held, open, beforeStep } = gate();
    const timelines: RequestTimeline[] = [];
    const { engine } = toyEngine(
      { numBlocks: 8, beforeStep },
      { observer: { onRequest: (timeline) => timelines.push(timeline) } },
    );
    const [aborter, other] = [new AbortController(), new AbortController()];
    const leaving = collect(engine, engineRequest(prompt(3), {}, { signal: aborter.signal }));
    const staying = collect(
      engine,
      engineRequest(prompt(4), { maxTokens: 2 }, { signal: other.signal }),
    );
    await waitFor("a step in flight", () => held.length === 1);
    aborter.abort();
    await assert.rejects(leaving, { name: "AbortError" });
    assert.equal(held[0].signal.aborted, false, "the other still wants the step");
    assert.equal(engine.state().freeBlocks, 6);
    open();
    await waitFor("the next step", () => held.length === 2);
    assert.equal(engine.state().freeBlocks, 7);
    open();
    assert.deepEqual((await staying).tokenIds, toyContinuation(prompt(4), 2));
    assert.equal(engine.state().freeBlocks, 8);
    assert.deepEqual(
      timelines.map(({ outcome }) => outcome),
      ["abort", "length"],
    );
    for (const { signal } of [aborter, other]) {
      assert.equal(getEventListeners(signal, "abort").length, 0);
    }
    await engine.close();
  });

  it("aborts the step that was for it alone, waiting or not", async () => {
    const { held, beforeStep } = gate();
    const failed: boolean[] = [];
    const observer: EngineObserver = {
      onStepFailed: ({ aborted }) => failed.push(aborted),
      onStep: () => assert.fail("no step has a result"),
    };
    const { engine } = toyEngine({ numBlocks: 8, beforeStep }, { maxNumSeqs: 1, observer });
    const aborters = [1, 2].map(() => new AbortController());
    const leaving = aborters.map(({ signal }, i) =>
      assert.rejects(collect(engine, engineRequest(prompt(3 + i), {}, { signal })), {
        name: "AbortError",
      }),
    );
    await waitFor("a step in flight", () => held.length === 1);
    aborters[1].abort();
    await leaving[1];
    assert.equal(engine.state().waiting, 0);
    assert.equal(held[0].signal.aborted, false);
    aborters[0].abort();
    await leaving[0];
    assert.equal(held[0].signal.aborted, true);
    await waitFor("all blocks free", () => engine.state().freeBlocks === 8);
    assert.deepEqual(failed, [true], "observers hear of the aborted step");
    const gone = AbortSignal.abort();
    await assert.rejects(collect(engine, engineRequest(prompt(3), {}, { signal: gone })), {
      name: "AbortError",
    });
    await engine.close();
  });

  it("ends when the request timeout is over, running or waiting", async () => {
    const { beforeStep } = gate();
    const { engine } = toyEngine(
      { numBlocks: 8, beforeStep },
      { maxNumSeqs: 1, requestTimeoutMs: 30 },
    );
    await Promise.all(
      [3, 4].map((length) =>
        assert.rejects(
          collect(engine, engineRequest(prompt(length))),
          (error: Error) =>
            error instanceof RequestTimeoutError && error.message.includes("0.03 s"),
        ),
      ),
    );
    await waitFor("all blocks free", () => engine.state().freeBlocks === 8);
    await engine.close();
  });

  it("has its time from its client's asking, and its prompt is looked up unless each position is wanted", async () => {
    const timelines: RequestTimeline[] = [];
    const observer: EngineObserver = { onRequest: (timeline) => timelines.push(timeline) };
    const { held, open, beforeStep } = gate();
    const { engine } = toyEngine({ numBlocks: 8, beforeStep }, { observer });
    const late = { arrivedAt: performance.now() - 60_001 };
    const ended = collect(engine, engineRequest(prompt(3), {}, late));
    await assert.rejects(ended, RequestTimeoutError);
    assert.ok(timelines[0].finishedAt - timelines[0].arrivedAt >= 60_000);
    assert.equal(timelines[0].lookedUpTokens, 3);
    const before = held.length;
    const scored = collect(engine, engineRequest(prompt(3), { maxTokens: 1, promptLogprobs: 0 }));
    await waitFor("its step", () => held.length > before);
    open();
    await scored;
    assert.equal(timelines[1].lookedUpTokens, 0);
    await engine.close();
  });

  it("counts as stopped when its reader leaves before the finish, with the tokens that it took", async () => {
    const timelines: RequestTimeline[] = [];
    const { engine } = toyEngine(
      { numBlocks: 8 },
      { observer: { onRequest: (timeline) => timelines.push(timeline) } },
    );
    let numTokens = 0;
    for await (const event of engine.submit(engineRequest(prompt(3), { maxTokens: 100 }))) {
      if (event.type === "token" && ++numTokens === 5) break;
    }
    await waitFor("all blocks free", () => engine.state().freeBlocks === 8);
    assert.deepEqual(
      timelines.map(({ outcome, completionTokens }) => [outcome, completionTokens]),
      [["stop", 5]],
    );
    await engine.close();
  });

  it("does not hold the others up when it is read slowly", async () => {
    const { engine } = toyEngine({ numBlocks: 16 });
    const slow = engine.submit(engineRequest(prompt(3), { maxTokens: 50 }));
    const iterator = slow[Symbol.asyncIterator]();
    await iterator.next();
    const other = await collect(engine, engineRequest(prompt(4), { maxTokens: 60 }));
    assert.equal(other.tokenIds.length, 60);
    const rest: number[] = [];
    for (;;) {
      const { value, done } = await iterator.next();
      if (done) break;
      if (value.type === "token") rest.push(value.tokenId);
    }
    assert.deepEqual(rest, toyContinuation(prompt(3), 50));
    await engine.close();
  });
});
