import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { setImmediate } from "node:timers/promises";

import fc from "fast-check";

import { UnavailableError } from "../../../router-service/engine/errors.ts";
import { uniformAt } from "../../../router-service/engine/random.ts";
import type {
  EngineEvent,
  PositionLogprobs,
  SamplingParams,
} from "../../../router-service/engine/request.ts";
import { sampleToken } from "../../../router-service/engine/sampler.ts";
import { greedy } from "../../../bench/rig/greedy.ts";
import { collect, engineRequest, toyEngine } from "../../support/engine-requests.ts";
import { logSumExp, sampleLogits, toyContinuation, toyLogitsOf } from "../../support/toy-runner.ts";
import { waitFor } from "../../../bench/rig/wait-for.ts";

/** One request of a random run: prompts of a family share their beginning. */
const arrivalOf = fc.record({
  family: fc.nat(5),
  promptLength: fc.integer({ min: 1, max: 36 }),
  own: fc.nat(3),
  maxTokens: fc.integer({ min: 1, max: 60 }),
  /** Turns of the event loop before it arrives. */
  after: fc.nat(6),
  /** Tokens after which it is aborted; negative: before its prompt is computed; absent: never. */
  abortAt: fc.option(fc.integer({ min: -3, max: 30 }), { nil: undefined, freq: 2 }),
  leaves: fc.boolean(),
  promptLogprobs: fc.option(fc.constantFrom(0, 2), { nil: undefined, freq: 4 }),
});

const runOf = fc.record({
  numBlocks: fc.integer({ min: 6, max: 14 }),
  maxNumSeqs: fc.integer({ min: 1, max: 10 }),
  maxNumBatchedTokens: fc.integer({ min: 1, max: 60 }),
  maxSamples: fc.integer({ min: 1, max: 20 }),
  runsAhead: fc.boolean(),
  failAt: fc.option(fc.nat(100), { nil: undefined, freq: 2 }),
  arrivals: fc.array(arrivalOf, { minLength: 4, maxLength: 16 }),
});

type Arrival = typeof arrivalOf extends fc.Arbitrary<infer T> ? T : never;

/** The prompt's first tokens are its family's, its last few its own. */
function promptOf({ family, promptLength, own }: Arrival): number[] {
  return Array.from({ length: promptLength }, (_, i) =>
    i < promptLength - own ? (family * 37 + i * 5) % 97 : (own * 13 + i) % 97,
  );
}

/** Reads a request until it ends or is aborted, and returns what came; undefined where a failed step ended it. */
async function read(
  events: AsyncIterable<EngineEvent>,
  { abortAt, leaves }: Arrival,
  abort: AbortController,
): Promise<
  { tokenIds: number[]; promptLogprobs?: readonly (PositionLogprobs | undefined)[] } | undefined
> {
  const tokenIds: number[] = [];
  let promptLogprobs: readonly (PositionLogprobs | undefined)[] | undefined;
  try {
    for await (const event of events) {
      if (event.type === "prompt") promptLogprobs = event.promptLogprobs;
      if (event.type === "token") tokenIds.push(event.tokenId);
      if (tokenIds.length !== abortAt) continue;
      if (leaves) break;
      abort.abort();
    }
  } catch (error) {
    if (error instanceof UnavailableError) return undefined;
    if (!(error instanceof Error && error.name === "AbortError")) throw error;
  }
  return { tokenIds, promptLogprobs };
}

describe("an engine under random requests, aborts and failing steps", () => {
  it("yields every token as if the request were alone, and ends with all blocks free", async () => {
    const seen = { preemptions: 0, cached: 0, failed: 0, aborted: 0 };
    await fc.assert(
      fc.asyncProperty(runOf, async (run) => {
        let numSteps = 0;
        let { failAt } = run;
        const { engine } = toyEngine(
          {
            numBlocks: run.numBlocks,
            maxSamples: run.maxSamples,
            runsAhead: run.runsAhead,
            beforeStep: () => {
              if (numSteps++ === failAt) throw new UnavailableError("a shard is gone");
            },
          },
          { maxNumSeqs: run.maxNumSeqs, maxNumBatchedTokens: run.maxNumBatchedTokens },
        );
        await Promise.all(
          run.arrivals.map(async (arrival) => {
            for (let i = 0; i < arrival.after; i++) await setImmediate();
            const prompt = promptOf(arrival);
            const abort = new AbortController();
            const { maxTokens, promptLogprobs, abortAt } = arrival;
            const request = engineRequest(
              prompt,
              { maxTokens, promptLogprobs },
              { signal: abort.signal },
            );
            const reading = read(engine.submit(request), arrival, abort);
            if (abortAt !== undefined && abortAt < 0) {
              for (let i = abortAt; i < 0; i++) await setImmediate();
              abort.abort();
            }
            const heard = await reading;
            if (heard === undefined) {
              seen.failed++;
              assert.ok(run.failAt !== undefined);
              return;
            }
            const { tokenIds } = heard;
            assert.deepEqual(tokenIds, toyContinuation(prompt, tokenIds.length));
            if (tokenIds.length < maxTokens) {
              seen.aborted++;
              assert.ok(abortAt !== undefined, "only an abort ends it before its last token");
            }
            if (heard.promptLogprobs !== undefined) checkPrompt(prompt, heard.promptLogprobs);
          }),
        );
        await waitFor("an empty engine", () => {
          const { running, waiting, freeBlocks } = engine.state();
          return running + waiting === 0 && freeBlocks === run.numBlocks;
        });
        failAt = undefined;
        // What the run left in the cache is right as well.
        const [last] = run.arrivals;
        const { tokenIds, cachedTokens } = await collect(engine, engineRequest(promptOf(last)));
        assert.deepEqual(tokenIds, toyContinuation(promptOf(last), 8));
        seen.cached += cachedTokens;
        seen.preemptions += engine.state().preemptions;
        await engine.close();
      }),
      { numRuns: 80 },
    );
    for (const [what, count] of Object.entries(seen)) assert.ok(count > 10, `${what}: ${count}`);
  });

  it("yields the same sampled text for the same seed, whatever the batch", async () => {
    const sampling = {
      temperature: 1.1,
      topP: 0.9,
      seed: 11,
      maxTokens: 20,
      repetitionPenalty: 1.2,
    };
    const prompt = Array.from({ length: 30 }, (_, i) => i);
    const { engine: alone } = toyEngine({ numBlocks: 16 });
    const { tokenIds } = await collect(alone, engineRequest(prompt, sampling));
    await alone.close();
    assert.deepEqual(tokenIds, sampledContinuation(prompt, greedy(sampling)));
    const { engine } = toyEngine({ numBlocks: 7 }, { maxNumBatchedTokens: 10 });
    const crowd = await Promise.all(
      [5, 40, 11, 23].flatMap((length, i) => [
        collect(engine, engineRequest(prompt.slice(0, length), { temperature: 1, seed: i })),
        collect(engine, engineRequest(prompt, sampling)),
      ]),
    );
    assert.ok(engine.state().preemptions > 0);
    for (const i of [1, 3, 5, 7]) assert.deepEqual(crowd[i].tokenIds, tokenIds);
    const other = await collect(engine, engineRequest(prompt, { ...sampling, seed: 12 }));
    assert.notDeepEqual(other.tokenIds, tokenIds);
    const unseeded = [1, 2].map(() =>
      collect(engine, engineRequest(prompt, { ...sampling, seed: undefined })),
    );
    const [first, second] = await Promise.all(unseeded);
    assert.notDeepEqual(first.tokenIds, second.tokenIds);
    await engine.close();
  });
});

/** What the oracle's logits give with the seed's random numbers, one per token. */
function sampledContinuation(prompt: readonly number[], params: SamplingParams): number[] {
  const ids = [...prompt];
  const generatedCounts = new Map<number, number>();
  const state = { promptTokenIds: new Set(prompt), generatedCounts, endingTokenIds: [] };
  for (let i = 0; i < params.maxTokens; i++) {
    const row = sampleLogits(toyLogitsOf(ids), { numCandidates: 1, fullLogits: true });
    const uniform = uniformAt(params.seed ?? 0, i);
    const id = sampleToken(row, params, { ...state, numGenerated: i }, uniform);
    generatedCounts.set(id, (generatedCounts.get(id) ?? 0) + 1);
    ids.push(id);
  }
  return ids.slice(prompt.length);
}

/** Compares prompt log-probabilities with the oracle's. */
function checkPrompt(
  prompt: readonly number[],
  positions: readonly (PositionLogprobs | undefined)[],
): void {
  assert.equal(positions.length, prompt.length);
  assert.equal(positions[0], undefined);
  for (let i = 1; i < prompt.length; i++) {
    const logits = toyLogitsOf(prompt.slice(0, i));
    const position = positions[i];
    assert.equal(position?.token.tokenId, prompt[i]);
    assert.ok(Math.abs(position.token.logprob - (logits[prompt[i]] - logSumExp(logits))) < 1e-9);
    for (const [rank, { tokenId, logprob }] of position.top.entries()) {
      assert.ok(Math.abs(logprob - (logits[tokenId] - logSumExp(logits))) < 1e-9);
      if (rank === 0) assert.equal(logits[tokenId], Math.max(...logits));
    }
  }
}
