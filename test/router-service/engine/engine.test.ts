import assert from "node:assert/strict";
import { describe, it } from "node:test";

import { InvalidRequestError, QueueFullError } from "../../../router-service/engine/errors.ts";
import type { RequestTimeline, StepReport } from "../../../router-service/engine/observer.ts";
import { tokenLogprobs } from "../../../router-service/engine/sampler.ts";
import { collect, engineRequest, toyEngine } from "../../support/engine-requests.ts";
import { sampleLogits, toyContinuation, toyLogitsOf } from "../../support/toy-runner.ts";
import { waitFor } from "../../../bench/rig/wait-for.ts";

const prompt = (length: number, from = 0) =>
  Array.from({ length }, (_, i) => (from * 31 + i * 7) % 97);

describe("the engine", () => {
  it("continues one prompt as the oracle does", async () => {
    const { engine } = toyEngine({ numBlocks: 8 });
    const { tokenIds, reason, cachedTokens } = await collect(
      engine,
      engineRequest(prompt(21), { maxTokens: 40 }),
    );
    assert.deepEqual(tokenIds, toyContinuation(prompt(21), 40));
    assert.equal(reason, "length");
    assert.equal(cachedTokens, 0);
    assert.equal(engine.state().freeBlocks, 8);
    await engine.close();
  });

  it("computes sixteen prompts in one batch, each as if it were alone", async () => {
    const { engine, runner } = toyEngine({ numBlocks: 64 });
    const prompts = Array.from({ length: 16 }, (_, i) => prompt(3 + i, i + 1));
    const all = await Promise.all(
      prompts.map((ids) => collect(engine, engineRequest(ids, { maxTokens: 12 }))),
    );
    for (const [i, { tokenIds }] of all.entries()) {
      assert.deepEqual(tokenIds, toyContinuation(prompts[i], 12));
    }
    const decodes = runner.batches.filter(
      ({ blockTables, tokenIds }) => blockTables.length === 16 && tokenIds.length === 16,
    );
    assert.equal(decodes.length, 11);
    await engine.close();
  });

  it("takes a known prefix from the cache and yields the same tokens", async () => {
    const { engine, runner } = toyEngine({ numBlocks: 16 });
    const first = await collect(engine, engineRequest(prompt(64)));
    const numTokens = () => runner.batches.reduce((sum, { tokenIds }) => sum + tokenIds.length, 0);
    const before = numTokens();
    const second = await collect(engine, engineRequest(prompt(64)));
    assert.equal(first.cachedTokens, 0);
    assert.equal(second.cachedTokens, 48, "the last token is computed, so its block is");
    assert.deepEqual(second.tokenIds, first.tokenIds);
    assert.equal(numTokens() - before, 16 + 7);
    await engine.close();
  });

  it("preempts when blocks run out, yields the same tokens and frees every block", async () => {
    const preempted: string[] = [];
    const { engine } = toyEngine(
      { numBlocks: 9 },
      { observer: { onPreemption: (id) => preempted.push(id) } },
    );
    const prompts = [1, 2, 3, 4].map((i) => prompt(20 + i, i));
    const all = await Promise.all(
      prompts.map((ids) => collect(engine, engineRequest(ids, { maxTokens: 60 }))),
    );
    for (const [i, { tokenIds }] of all.entries()) {
      assert.deepEqual(tokenIds, toyContinuation(prompts[i], 60));
    }
    assert.ok(preempted.length > 0);
    const { preemptions, freeBlocks, running, waiting } = engine.state();
    assert.deepEqual(
      { preemptions, freeBlocks, running, waiting },
      { preemptions: preempted.length, freeBlocks: 9, running: 0, waiting: 0 },
    );
    await engine.close();
  });

  it("computes a long prompt in chunks of the token budget, beside the others' decodes", async () => {
    const { engine, runner } = toyEngine({ numBlocks: 64 }, { maxNumBatchedTokens: 20 });
    const long = prompt(203, 5);
    const [, { tokenIds }] = await Promise.all([
      collect(engine, engineRequest(prompt(4), { maxTokens: 30 })),
      collect(engine, engineRequest(long)),
    ]);
    assert.deepEqual(tokenIds, toyContinuation(long, 8));
    assert.ok(runner.batches.every(({ tokenIds }) => tokenIds.length <= 20));
    const mixed = runner.batches.filter(
      ({ tokenIds, blockTables }) => tokenIds.length === 20 && blockTables.length === 2,
    );
    assert.ok(mixed.length >= 10, "a decode and a chunk of 19");
    await engine.close();
  });

  it("refuses what could never fit, by name", async () => {
    const { engine } = toyEngine({ numBlocks: 4 }, { maxModelLen: 100 });
    const refused = async (ids: number[], maxTokens: number, message: RegExp, param: string) => {
      await assert.rejects(
        collect(engine, engineRequest(ids, { maxTokens })),
        (error: InvalidRequestError) =>
          error instanceof InvalidRequestError &&
          message.test(error.message) &&
          error.param === param,
      );
    };
    await refused(prompt(95), 6, /context is 100 tokens; 101 .* 95 .* 6/, "max_tokens");
    await refused(prompt(101), 1, /context is 100 tokens; 102/, "prompt");
    await refused(prompt(60), 6, /need 5 KV blocks of 16 tokens; there are 4/, "max_tokens");
    await refused([], 5, /empty/, "prompt");
    await refused([3, 97], 5, /token 1 of the prompt is 97; ids are 0 to 96/, "prompt");
    assert.equal(
      (await collect(engine, engineRequest(prompt(60), { maxTokens: 5 }))).reason,
      "length",
    );
    await engine.close();
  });

  it("refuses a request when the queue is at its bound, and takes one again later", async () => {
    const gate = Promise.withResolvers<void>();
    const { engine } = toyEngine(
      { numBlocks: 8, beforeStep: () => gate.promise },
      { maxQueue: 2, maxNumSeqs: 1 },
    );
    const first = collect(engine, engineRequest(prompt(3)));
    await waitFor("the first to run", () => engine.state().running === 1);
    const others = [4, 5].map((n) => collect(engine, engineRequest(prompt(n))));
    await assert.rejects(
      collect(engine, engineRequest(prompt(6))),
      (error: Error) => error instanceof QueueFullError && /2 requests wait/.test(error.message),
    );
    gate.resolve();
    await Promise.all([first, ...others]);
    assert.equal((await collect(engine, engineRequest(prompt(6)))).tokenIds.length, 8);
    await engine.close();
  });

  it("ends at an end-of-sequence or stop id, counted but not yielded", async () => {
    const oracle = toyContinuation(prompt(9), 8);
    const end = oracle[4];
    const expected = oracle.slice(0, oracle.indexOf(end));
    const { engine } = toyEngine({ numBlocks: 8 }, { eosTokenIds: [end] });
    const eos = await collect(engine, engineRequest(prompt(9)));
    assert.deepEqual(eos.tokenIds, expected);
    assert.deepEqual([eos.reason, eos.stopTokenId], ["stop", end]);
    const ignoring = await collect(engine, engineRequest(prompt(9), { ignoreEos: true }));
    assert.deepEqual([ignoring.tokenIds, ignoring.reason], [oracle, "length"]);
    const stopId = { ignoreEos: true, stopTokenIds: [end] };
    const stopped = await collect(engine, engineRequest(prompt(9), stopId));
    assert.deepEqual([stopped.tokenIds, stopped.stopTokenId], [expected, end]);
    await engine.close();
  });

  it("chooses no ending id before min_tokens", async () => {
    const [first, ...rest] = toyContinuation(prompt(9), 8);
    const { engine } = toyEngine({ numBlocks: 8 }, { eosTokenIds: [first, rest[0]] });
    const ended = await collect(engine, engineRequest(prompt(9)));
    assert.deepEqual([ended.tokenIds, ended.stopTokenId], [[], first]);
    const later = await collect(engine, engineRequest(prompt(9), { minTokens: 5, maxTokens: 50 }));
    assert.ok(later.tokenIds.length >= 5);
    assert.ok(!later.tokenIds.includes(first) && !later.tokenIds.includes(rest[0]));
    await engine.close();
  });

  it("reports each token's log-probability, and the prompt's where no token is to be generated", async () => {
    const { engine } = toyEngine({ numBlocks: 8, maxSamples: 5 });
    const { tokenIds, logprobs } = await collect(engine, engineRequest(prompt(9), { logprobs: 3 }));
    for (const [i, position] of logprobs.entries()) {
      const logits = toyLogitsOf([...prompt(9), ...tokenIds.slice(0, i)]);
      const row = sampleLogits(logits, { numCandidates: 3, fullLogits: false });
      assert.deepEqual(position, tokenLogprobs(row, tokenIds[i], 3));
    }
    const scoring = { maxTokens: 0, promptLogprobs: 1 };
    const scored = await collect(engine, engineRequest(prompt(40), scoring));
    assert.deepEqual([scored.tokenIds, scored.reason], [[], "length"]);
    assert.deepEqual(
      scored.promptLogprobs?.map((position) => position?.token.tokenId),
      [undefined, ...prompt(40).slice(1)],
    );
    await engine.close();
  });

  it("tells observers of every step and of each request's life", async () => {
    const steps: StepReport[] = [];
    const timelines: RequestTimeline[] = [];
    const gaps: (number | undefined)[] = [];
    let clock = 0;
    const { engine } = toyEngine(
      { numBlocks: 8 },
      {
        maxNumBatchedTokens: 16,
        now: () => ++clock,
        observer: {
          onStep: (report) => steps.push(report),
          onToken: (_, gap) => gaps.push(gap),
          onRequest: (timeline) => timelines.push(timeline),
        },
      },
    );
    await collect(engine, engineRequest(prompt(20), { maxTokens: 3 }, { task: "poem" }));
    assert.deepEqual(
      steps.map(({ sequences, numTokens }) => [sequences[0].phase, sequences[0].task, numTokens]),
      [
        ["prefill", "poem", 16],
        ["prefill", "poem", 4],
        ["decode", "poem", 1],
        ["decode", "poem", 1],
      ],
    );
    assert.equal(steps[0].routing.get(0)?.ids.length, 16);
    assert.ok(steps.every(({ startedAt, finishedAt }) => finishedAt > startedAt));
    assert.equal(gaps[0], undefined);
    assert.ok(gaps.slice(1).every((gap) => gap !== undefined && gap > 0));
    const [timeline] = timelines;
    assert.equal(timelines.length, 1);
    assert.deepEqual(
      [timeline.outcome, timeline.promptTokens, timeline.completionTokens, timeline.maxTokens],
      ["length", 20, 3, 3],
    );
    const times = [
      timeline.arrivedAt,
      timeline.scheduledAt ?? 0,
      timeline.firstTokenAt ?? 0,
      timeline.lastTokenAt ?? 0,
      timeline.finishedAt,
    ];
    assert.deepEqual(
      times,
      times.toSorted((a, b) => a - b),
    );
    await engine.close();
  });
});
