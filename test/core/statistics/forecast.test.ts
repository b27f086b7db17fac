import assert from "node:assert/strict";
import { test } from "node:test";

import fc from "fast-check";

import { addWindow, emptyHistory, forecastLoad } from "../../../core/statistics/forecast.ts";
import { PREDICTORS } from "../../../core/statistics/predictors.ts";
import type { CountedWindow, QueuedTokens } from "../../../core/statistics/windows.ts";

const SHAPE = { numMoeLayers: 2, numExperts: 4, topK: 2 };

/** Tokens of a task that choose two of the four experts of both layers by weight. */
function windowOf(task: string, tokens: number, weights: readonly number[]): CountedWindow {
  const sum = weights.reduce((total, one) => total + one, 0);
  const layer = weights.map((weight) => (weight / sum) * SHAPE.topK * tokens);
  const expertTokens = Float64Array.from([...layer, ...layer]);
  return {
    seconds: 10,
    steps: tokens / 8,
    series: [{ task, phase: "prefill", tokens, expertTokens }],
  };
}

const queue = (task: string, tokens: number): QueuedTokens[] => [
  { task, phase: "prefill", tokens },
];

test("without a history every expert is expected as often as every other", () => {
  const { load, deviation, chosen } = forecastLoad(emptyHistory(SHAPE), {
    queued: [],
    tokensPerStep: 16,
  });
  assert.deepEqual([...load], Array(8).fill(8));
  assert.deepEqual([...deviation], [...load]);
  assert.deepEqual(chosen, [undefined, undefined]);
});

test("the task that is queued is expected, not the one that was", () => {
  let history = emptyHistory(SHAPE);
  for (const task of ["a", "b", "a", "b", "a"]) {
    const weights = task === "a" ? [7, 1, 1, 1] : [1, 1, 1, 7];
    for (let i = 0; i < 5; i++)
      history = addWindow(history, windowOf(task, 4000, weights), queue(task, 4000));
  }
  const forecast = forecastLoad(history, { queued: queue("b", 5000) });
  const { load, chosen, tokensPerStep, errors } = forecast;
  assert.ok(
    chosen.every((name) => name === "mix" || name === "recent-mix"),
    chosen.join(),
  );
  assert.equal(Math.round(tokensPerStep), 8);
  const least = Math.min(...PREDICTORS.map((name) => errors?.[name] ?? NaN));
  assert.equal(errors?.[chosen[0] ?? "last-window"], least);
  assert.ok(errors !== undefined && errors.forecast < errors["last-window"]);
  assert.ok(load[3] > 0.95 * 1.4 * 8 && load[0] < 1.2 * 0.2 * 8, [...load].join());
});

test("a layer's load is topK times the tokens of a step, whatever came before", () => {
  const arbitraryWindow = fc.record({
    task: fc.constantFrom("a", "b", "c"),
    tokens: fc.integer({ min: 1, max: 10_000 }),
    weights: fc
      .array(fc.integer({ min: 0, max: 9 }), { minLength: 4, maxLength: 4 })
      .filter((w) => w.some((x) => x > 0)),
  });
  fc.assert(
    fc.property(
      fc.array(arbitraryWindow, { minLength: 1, maxLength: 8 }),
      fc.nat(9000),
      (windows, waiting) => {
        let history = emptyHistory(SHAPE);
        for (const { task, tokens, weights } of windows) {
          history = addWindow(history, windowOf(task, tokens, weights), queue("a", waiting));
        }
        const { load, deviation } = forecastLoad(history, {
          queued: queue("z", waiting),
          tokensPerStep: 32,
        });
        for (const l of [0, 1]) {
          const sum = load.subarray(l * 4, l * 4 + 4).reduce((total, one) => total + one, 0);
          assert.ok(Math.abs(sum - 64) < 1e-9, `${sum}`);
        }
        for (const value of [...load, ...deviation])
          assert.ok(value >= 0 && value < 65, `${value}`);
      },
    ),
  );
});

test("every predictor is measured before the window is known to it", () => {
  let history = emptyHistory(SHAPE);
  history = addWindow(history, windowOf("a", 100, [1, 0, 0, 0]), []);
  for (const name of PREDICTORS) assert.equal(history.errors[name].tokens, 0);
  history = addWindow(history, windowOf("a", 100, [0, 0, 0, 1]), []);
  for (const name of PREDICTORS) assert.equal(history.errors[name].relative[0], 2, name);
});
