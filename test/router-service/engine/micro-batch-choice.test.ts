import assert from "node:assert/strict";
import { describe, it } from "node:test";

import {
  chooseMicroBatches,
  type MicroBatchTimes,
  noteStep,
} from "../../../router-service/engine/micro-batch-choice.ts";

/** Runs steps as the choice says; returns how many had two micro-batches. */
function run(
  steps: number,
  numTokens: number,
  ms: (microBatches: 1 | 2, step: number) => number,
): number {
  let times: MicroBatchTimes = new Map();
  let two = 0;
  for (let step = 0; step < steps; step++) {
    const choice = chooseMicroBatches(times, numTokens);
    if (choice === 2) two++;
    times = noteStep(times, numTokens, choice, ms(choice, step));
  }
  return two;
}

describe("the number of micro-batches", () => {
  it("is two where steps are faster with two, but for one step in 32", () => {
    assert.equal(
      run(322, 64, (n) => (n === 2 ? 20 : 30)),
      322 - 11,
    );
  });

  it("is one where steps are faster with one, but for one step in 32", () => {
    assert.equal(
      run(322, 64, (n) => (n === 2 ? 30 : 20)),
      11,
    );
  });

  it("changes when the times do", () => {
    const two = run(2000, 64, (n, step) => (n === 2 ? 20 : step < 1000 ? 30 : 10));
    assert.ok(two > 1000 && two < 1200, `${two} of 2000`);
  });

  it("is chosen for steps of each size by itself", () => {
    let times: MicroBatchTimes = new Map();
    for (const numTokens of [4, 64]) {
      times = noteStep(times, numTokens, 1, 10);
      times = noteStep(times, numTokens, 2, numTokens === 4 ? 15 : 8);
    }
    assert.deepEqual(
      [4, 5, 7, 64, 100].map((numTokens) => chooseMicroBatches(times, numTokens)),
      [1, 1, 1, 2, 2],
    );
  });

  it("of a single token is always one", () => {
    assert.equal(
      run(100, 1, (n) => (n === 2 ? 0 : 30)),
      0,
    );
  });
});
