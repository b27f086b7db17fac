import assert from "node:assert/strict";
import { test } from "node:test";

import { arrivalTimes } from "../../../bench/load/arrivals.ts";
import { randomPrompts, textPrompts } from "../../../bench/load/dataset.ts";
import { seededRandom } from "../../../core/random.ts";

function gaps(times: readonly number[]): number[] {
  return times.slice(1).map((time, i) => time - times[i]);
}

function meanAndVariation(values: readonly number[]): { mean: number; variation: number } {
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  const variance = values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / values.length;
  return { mean, variation: Math.sqrt(variance) / mean };
}

test("a closed loop sends everything as soon as it may", () => {
  const closed = { requestRate: Infinity, burstiness: 1 };
  assert.deepEqual(arrivalTimes(closed, 3, seededRandom(1)), [0, 0, 0]);
});

for (const burstiness of [0.5, 1, 4])
  test(`gaps at burstiness ${burstiness} have the rate's mean and the gamma distribution's spread`, () => {
    const times = arrivalTimes({ requestRate: 20, burstiness }, 20_001, seededRandom(7));
    const { mean, variation } = meanAndVariation(gaps(times));
    assert.ok(Math.abs(mean - 50) < 50 * 0.03, `mean gap ${mean} ms, expected 50`);
    const expected = 1 / Math.sqrt(burstiness);
    assert.ok(Math.abs(variation / expected - 1) < 0.03, `variation ${variation}`);
  });

test("Poisson gaps are exponential: 1 - 1/e of them are shorter than their mean", () => {
  const times = arrivalTimes({ requestRate: 1, burstiness: 1 }, 20_001, seededRandom(3));
  const share = gaps(times).filter((gap) => gap < 1000).length / 20_000;
  assert.ok(Math.abs(share - (1 - 1 / Math.E)) < 0.01, `share ${share}`);
});

test("the same seed gives the same arrivals and prompts, another seed others", () => {
  const load = (seed: number) => {
    const random = seededRandom(seed);
    const prompts = randomPrompts(4, 8, 384, random);
    return { prompts, times: arrivalTimes({ requestRate: 3, burstiness: 1 }, 4, random) };
  };
  assert.deepEqual(load(5), load(5));
  assert.notDeepEqual(load(5), load(6));
});

test("random prompts keep their length and vocabulary", () => {
  const prompts = randomPrompts(50, 40, 7, seededRandom(0));
  assert.equal(prompts.length, 50);
  assert.ok(prompts.every((ids) => ids.length === 40));
  assert.deepEqual(new Set(prompts.flat()), new Set([0, 1, 2, 3, 4, 5, 6]));
});

test("text prompts are slices of the encoded texts, taking turns", () => {
  const encode = (text: string) => Array.from(text, (c) => c.codePointAt(0) ?? 0);
  const prompts = textPrompts(["abcdef", "uvwxyz"], 4, 3, seededRandom(2), encode);
  const texts = prompts.map((ids) => String.fromCodePoint(...ids));
  assert.ok(texts.every((text, i) => ["abcdef", "uvwxyz"][i % 2].includes(text)));
  assert.throws(
    () => textPrompts(["abc"], 1, 4, seededRandom(2), encode),
    /3 tokens, prompts of 4/,
  );
});
