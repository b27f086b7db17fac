import assert from "node:assert/strict";
import { describe, it } from "node:test";

import fc from "fast-check";

import { uniformAt } from "../../../router-service/engine/random.ts";
import type { SamplingParams } from "../../../router-service/engine/request.ts";
import {
  BrokenLogitsError,
  sampleRequirements,
  sampleToken,
  targetLogprobs,
  tokenLogprobs,
  type SamplingState,
} from "../../../router-service/engine/sampler.ts";
import { greedy } from "../../../bench/rig/greedy.ts";
import { logSumExp, sampleLogits } from "../../support/toy-runner.ts";

const VOCAB = 100;

const fresh: SamplingState = {
  promptTokenIds: new Set(),
  generatedCounts: new Map(),
  numGenerated: 0,
  endingTokenIds: [],
};

/** Logits on a grid, so that ties are common. */
const logitsOf = fc
  .array(fc.integer({ min: -40, max: 40 }), { minLength: VOCAB, maxLength: VOCAB })
  .map((values) => Float32Array.from(values, (value) => value / 8));

const id = fc.nat(VOCAB - 1);

const stateOf: fc.Arbitrary<SamplingState> = fc
  .record({
    promptTokenIds: fc.array(id).map((ids) => new Set(ids)),
    generatedCounts: fc
      .array(fc.tuple(id, fc.integer({ min: 1, max: 4 })))
      .map((pairs) => new Map(pairs)),
    endingTokenIds: fc.uniqueArray(id, { maxLength: 4 }),
  })
  .map(({ promptTokenIds, generatedCounts, endingTokenIds }) => {
    const numGenerated = [...generatedCounts.values()].reduce((a, b) => a + b, 0);
    return { promptTokenIds, generatedCounts, endingTokenIds, numGenerated };
  });

// No top_p that a sum of a few equal probabilities can hit exactly: rounding would decide.
const truncation = {
  temperature: fc.constantFrom(0, 0.31, 1, 2.7),
  topP: fc.constantFrom(0.1371, 0.6211, 0.9017, 1),
  minP: fc.constantFrom(0, 0.0513, 0.3),
  topK: fc.constantFrom(0, 1, 2, 7, 50, 60, 64, 99, 1000),
  minTokens: fc.constantFrom(0, 8),
  logprobs: fc.constantFrom(undefined, 0, 5, 20),
};

const penalties = {
  repetitionPenalty: fc.constantFrom(1, 0.7, 1.3),
  frequencyPenalty: fc.constantFrom(0, 0.4, -0.3),
  presencePenalty: fc.constantFrom(0, 0.9, -1.5),
  logitBias: fc
    .array(fc.tuple(id, fc.integer({ min: -100, max: 100 })), { maxLength: 3 })
    .map((pairs) => new Map(pairs)),
};

const paramsOf = fc.record({ ...truncation, ...penalties }).map((options) => greedy(options));

/** The plain way: every token with its probability, or none where it is cut off. */
function reference(
  logits: Float32Array,
  params: SamplingParams,
  state: SamplingState,
): Map<number, number> {
  let tokens = [...logits].map((logit, id) => {
    const count = state.generatedCounts.get(id) ?? 0;
    let value = logit + (params.logitBias.get(id) ?? 0);
    if (count > 0 || state.promptTokenIds.has(id)) {
      value = value > 0 ? value / params.repetitionPenalty : value * params.repetitionPenalty;
    }
    if (count > 0) value -= count * params.frequencyPenalty + params.presencePenalty;
    return { id, value };
  });
  if (state.numGenerated < params.minTokens) {
    tokens = tokens.filter((token) => !state.endingTokenIds.includes(token.id));
  }
  tokens.sort((a, b) => b.value - a.value || a.id - b.id);
  if (params.temperature === 0) return new Map([[tokens[0].id, 1]]);
  const softmax = (some: typeof tokens) => {
    const exps = some.map(({ value }) => Math.exp((value - tokens[0].value) / params.temperature));
    const sum = exps.reduce((a, b) => a + b, 0);
    return exps.map((exp) => exp / sum);
  };
  const all = softmax(tokens);
  tokens = tokens.filter((_, i) => all[i] / all[0] >= params.minP);
  if (params.topK > 0) tokens = tokens.slice(0, params.topK);
  const left = softmax(tokens);
  let mass = 0;
  tokens = tokens.filter((_, i) => {
    const before = mass;
    mass += left[i];
    return before < params.topP || params.topP === 1;
  });
  const final = softmax(tokens);
  return new Map(tokens.map(({ id }, i) => [id, final[i]]));
}

describe("the sampler", () => {
  it("draws each token as often as a plain softmax after the same options has it", () => {
    fc.assert(
      fc.property(logitsOf, paramsOf, stateOf, (logits, params, state) => {
        const expected = reference(logits, params, state);
        const row = sampleLogits(logits, sampleRequirements(params, state));
        const draws = 500;
        const counts = new Map<number, number>();
        for (let i = 0; i < draws; i++) {
          const token = sampleToken(row, params, state, (i + 0.5) / draws);
          counts.set(token, (counts.get(token) ?? 0) + 1);
        }
        for (const token of new Set([...counts.keys(), ...expected.keys()])) {
          const [count, probability] = [counts.get(token) ?? 0, expected.get(token) ?? 0];
          // An interval of the unit line holds as many points of a grid as its length says, or one more or less.
          assert.ok(
            Math.abs(count - probability * draws) <= 1 + 1e-6,
            `token ${token}: ${count} of ${draws} draws, probability ${probability}`,
          );
          if (probability === 0) assert.equal(count, 0);
        }
      }),
      { numRuns: 150 },
    );
  });

  it("chooses from candidates exactly what it chooses from all logits", () => {
    const options = fc.record(truncation).map((some) => greedy(some));
    const uniform = fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true });
    let numByCandidates = 0;
    fc.assert(
      fc.property(logitsOf, options, stateOf, uniform, (logits, params, state, at) => {
        const wish = sampleRequirements(params, state);
        if (wish.fullLogits) return;
        numByCandidates++;
        const few = sampleLogits(logits, wish);
        const all = sampleLogits(logits, { ...wish, fullLogits: true });
        const token = sampleToken(few, params, state, at);
        assert.equal(token, sampleToken(all, params, state, at));
        assert.deepEqual(tokenLogprobs(few, token, 3), tokenLogprobs(all, token, 3));
      }),
      { numRuns: 500 },
    );
    assert.ok(numByCandidates > 200);
  });

  it("asks for no more than the options need", () => {
    const wish = (options: Partial<SamplingParams>, state: Partial<SamplingState> = {}) => {
      const { numCandidates, fullLogits } = sampleRequirements(greedy(options), {
        ...fresh,
        ...state,
      });
      return fullLogits ? `${numCandidates} and all` : numCandidates;
    };
    assert.equal(wish({}), 1);
    assert.equal(wish({ logprobs: 0 }), 1);
    assert.equal(wish({ logprobs: 5 }), 5);
    assert.equal(wish({ temperature: 1, topK: 20 }), 20);
    assert.equal(wish({ temperature: 1, topK: 20, topP: 0.8, minP: 0.1, logprobs: 3 }), 20);
    assert.equal(wish({ temperature: 1, topK: 2, logprobs: 20 }), 20);
    assert.equal(wish({ temperature: 1, topK: 64 }), 64);
    assert.equal(wish({ temperature: 1, topK: 65 }), "1 and all");
    assert.equal(wish({ temperature: 1, topP: 0.5, logprobs: 4 }), "4 and all");
    assert.equal(wish({ repetitionPenalty: 1.1 }), "1 and all");
    assert.equal(wish({ frequencyPenalty: 1 }), "1 and all");
    assert.equal(wish({ presencePenalty: 1 }), "1 and all");
    assert.equal(wish({ logitBias: new Map([[1, 1]]) }), "1 and all");
    const masked = { endingTokenIds: [4, 5], numGenerated: 1 };
    assert.equal(wish({ minTokens: 2 }, masked), 3, "two of the three best may be masked");
    assert.equal(wish({ minTokens: 1 }, masked), 1);
    assert.equal(wish({ minTokens: 2, temperature: 1, topK: 63 }, masked), "1 and all");
  });

  it("reports log-probabilities of the raw distribution, whatever the options", () => {
    fc.assert(
      fc.property(logitsOf, paramsOf, stateOf, (logits, params, state) => {
        const row = sampleLogits(logits, sampleRequirements(params, state));
        const token = sampleToken(row, params, state, 0.4);
        const { token: own, top } = tokenLogprobs(row, token, params.logprobs ?? 0);
        const expected = (id: number) => logits[id] - logSumExp(logits);
        assert.ok(Math.abs(own.logprob - expected(token)) < 1e-9);
        assert.equal(top.length, params.logprobs ?? 0);
        const best = [...logits.keys()].sort((a, b) => logits[b] - logits[a] || a - b);
        assert.deepEqual(
          top.map(({ tokenId }) => tokenId),
          best.slice(0, top.length),
        );
        for (const { tokenId, logprob } of top) {
          assert.ok(Math.abs(logprob - expected(tokenId)) < 1e-9);
        }
      }),
      { numRuns: 100 },
    );
    const logits = Float32Array.of(1, 3, 2);
    const row = sampleLogits(logits, { numCandidates: 1, fullLogits: false, targetTokenId: 0 });
    assert.deepEqual(targetLogprobs(row, 0, 1), {
      token: { tokenId: 0, logprob: 1 - logSumExp(logits) },
      top: [{ tokenId: 1, logprob: 3 - logSumExp(logits) }],
    });
  });

  it("refuses to choose from broken logits, and to tell their log-probabilities", () => {
    for (const bad of [Number.NaN, Infinity]) {
      const row = {
        candidateIds: Uint32Array.of(3),
        candidateLogits: Float32Array.of(bad),
        logSumExp: bad,
        targetLogit: Number.NaN,
      };
      assert.throws(() => sampleToken(row, greedy(), fresh, 0), BrokenLogitsError);
      assert.throws(() => targetLogprobs(row, 3, 1), BrokenLogitsError);
    }
    const onlyEnd = sampleLogits(Float32Array.of(1), { numCandidates: 1, fullLogits: true });
    const state = { ...fresh, endingTokenIds: [0] };
    assert.throws(
      () => sampleToken(onlyEnd, greedy({ minTokens: 1 }), state, 0),
      BrokenLogitsError,
    );
  });

  it("has random numbers that depend on seed and index alone and are spread evenly", () => {
    assert.equal(uniformAt(7, 3), uniformAt(7, 3));
    const seeds = [0, 1, 2, -1, 2 ** 53 - 1];
    const numbers = seeds.flatMap((seed) =>
      Array.from({ length: 2000 }, (_, i) => uniformAt(seed, i)),
    );
    assert.equal(new Set(numbers).size, numbers.length);
    assert.ok(numbers.every((number) => number >= 0 && number < 1));
    const buckets = Array.from({ length: 20 }, () => 0);
    for (const number of numbers) buckets[Math.floor(number * 20)]++;
    const chiSquare = buckets.reduce((sum, count) => sum + (count - 500) ** 2 / 500, 0);
    assert.ok(chiSquare < 45, `chi-square ${chiSquare} of 19 degrees of freedom`);
  });
});
