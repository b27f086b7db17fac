import assert from "node:assert/strict";
import { test } from "node:test";

import { seededRandom } from "../../../core/random.ts";
import type { RoutedStep } from "../../../core/statistics/routed-step.ts";
import {
  LEAST_STEP_TOKENS,
  MAX_STEP_SAMPLES,
  StepSamples,
} from "../../../core/statistics/step-samples.ts";

const SHAPE = { layers: [1, 3], numExperts: 4, topK: 2 };

/** Prefill tokens choose experts 0 and 1, decode tokens 2 and 3 in the first layer and `expert` and 0 in the second. */
function stepOf(numDecode: number, numPrefill: number, expert = 1): RoutedStep {
  const idsOf = (decode: readonly number[]) =>
    Uint32Array.from([
      ...Array.from({ length: numPrefill }, () => [0, 1]).flat(),
      ...Array.from({ length: numDecode }, () => decode).flat(),
    ]);
  const routingOf = (ids: Uint32Array) => ({ ids, weights: new Float32Array(ids.length), topK: 2 });
  return {
    sequences: [
      { task: "a", phase: "prefill", numTokens: numPrefill },
      { task: "a", phase: "decode", numTokens: numDecode },
    ],
    numTokens: numPrefill + numDecode,
    routing: new Map([
      [1, routingOf(idsOf([2, 3]))],
      [3, routingOf(idsOf([expert, 0]))],
    ]),
  };
}

test("a sample holds what the decode tokens of one step chose, and no sample is told before all are there", () => {
  const samples = new StepSamples(SHAPE, () => 0);
  for (let n = 1; n < MAX_STEP_SAMPLES; n++) samples.offer(stepOf(10, 5));
  assert.deepEqual(samples.loads(), []);
  samples.offer(stepOf(10, 5));
  const loads = samples.loads();
  assert.equal(loads.length, MAX_STEP_SAMPLES);
  for (const load of loads) assert.deepEqual([...load], [0, 0, 10, 10, 10, 10, 0, 0]);
});

test("steps of few decode tokens are not kept, however many prefill tokens they have", () => {
  const samples = new StepSamples(SHAPE, () => 0);
  for (let n = 0; n < 100; n++) samples.offer(stepOf(LEAST_STEP_TOKENS - 1, 50));
  assert.deepEqual(samples.loads(), []);
});

test("samples follow what is served: after many steps of another kind none of the first kind is left", () => {
  const samples = new StepSamples(SHAPE, seededRandom(1));
  const ofSecondKind = () => samples.loads().filter((load) => load[6] > 0).length;
  for (let n = 0; n < 2_000; n++) samples.offer(stepOf(10, 0, 1));
  assert.equal(samples.loads().length, MAX_STEP_SAMPLES);
  assert.equal(ofSecondKind(), 0);
  for (let n = 0; n < 700; n++) samples.offer(stepOf(10, 0, 2));
  assert.ok(ofSecondKind() > 0 && ofSecondKind() < MAX_STEP_SAMPLES, `${ofSecondKind()}`);
  for (let n = 0; n < 20_000; n++) samples.offer(stepOf(10, 0, 2));
  assert.equal(ofSecondKind(), MAX_STEP_SAMPLES);
});
