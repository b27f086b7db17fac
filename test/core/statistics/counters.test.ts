import assert from "node:assert/strict";
import { test } from "node:test";

import fc from "fast-check";

import { RoutingCounters } from "../../../core/statistics/counters.ts";
import type { RoutedStep } from "../../../core/statistics/routed-step.ts";
import { seriesSum } from "../../../core/statistics/encoding.ts";
import { listsOfCells } from "../../../core/statistics/pairs.ts";
import { arbitraryStep, countNaively, nameCounts, SHAPE } from "./steps.ts";

function countsOf(counters: RoutingCounters): Map<string, number> {
  return nameCounts({
    series: counters.series.map(seriesSum),
    pairs: {
      together: listsOfCells(SHAPE, "together", counters.together.cells, SHAPE.numExperts),
      next: listsOfCells(SHAPE, "next", counters.next.cells, SHAPE.numExperts),
    },
  });
}

test("counters agree with counting one by one", () => {
  fc.assert(
    fc.property(fc.array(arbitraryStep, { maxLength: 5 }), (steps) => {
      const counters = new RoutingCounters(SHAPE);
      for (const step of steps) assert.ok(counters.record(step));
      assert.deepEqual(countsOf(counters), countNaively(steps));
    }),
  );
});

test("the load of a phase is the sum over its tasks", () => {
  fc.assert(
    fc.property(arbitraryStep, (step) => {
      const counters = new RoutingCounters(SHAPE);
      counters.record(step);
      for (const phase of ["prefill", "decode"] as const) {
        const tokens = step.sequences
          .filter((one) => one.phase === phase)
          .reduce((sum, one) => sum + one.numTokens, 0);
        const load = counters.load(phase);
        for (let l = 0; l < SHAPE.layers.length; l++) {
          const ofLayer = load.subarray(l * SHAPE.numExperts, (l + 1) * SHAPE.numExperts);
          assert.equal(
            ofLayer.reduce((sum, count) => sum + count, 0),
            tokens * SHAPE.topK,
          );
        }
      }
    }),
  );
});

function stepOf(changes: {
  readonly ids?: readonly number[];
  readonly weights?: readonly number[];
  readonly numTokens?: number;
  readonly topK?: number;
  readonly task?: string;
}): RoutedStep {
  const { ids = [0, 1], weights = [0.5, 0.5], topK = 2, task = "default" } = changes;
  const routing = { ids: Uint32Array.from(ids), weights: Float32Array.from(weights), topK };
  return {
    sequences: [{ task, phase: "decode", numTokens: 1 }],
    numTokens: changes.numTokens ?? 1,
    routing: new Map([[1, routing]]),
  };
}

test("a step whose arrays do not fit the model is refused whole", () => {
  const counters = new RoutingCounters(SHAPE);
  const misfits = [
    stepOf({ ids: [0, 6] }),
    stepOf({ ids: [0] }),
    stepOf({ weights: [1] }),
    stepOf({ topK: 1 }),
    stepOf({ numTokens: 2 }),
  ];
  for (const misfit of misfits) assert.equal(counters.record(misfit), false);
  assert.deepEqual(counters.series, []);
  assert.ok(counters.record(stepOf({})));
});

test("a weight that is no number adds nothing, its token counts", () => {
  const counters = new RoutingCounters(SHAPE);
  counters.record(stepOf({ ids: [2, 3], weights: [Number.NaN, 0.25] }));
  const { expertTokens, weightSums } = seriesSum(counters.series[0]);
  assert.deepEqual([...expertTokens.subarray(2, 4)], [1, 1]);
  assert.deepEqual([...weightSums.subarray(2, 4)], [0, 0.25]);
});

test("a layer without routing breaks the chain of consecutive layers", () => {
  const counters = new RoutingCounters(SHAPE);
  const routing = { ids: Uint32Array.of(0, 1), weights: Float32Array.of(0.5, 0.5), topK: 2 };
  counters.record({
    sequences: [{ task: "default", phase: "decode", numTokens: 1 }],
    numTokens: 1,
    routing: new Map([
      [1, routing],
      [5, routing],
    ]),
  });
  assert.ok(counters.next.cells.every((count) => count === 0));
});

test("64 task labels are told apart, later and malformed ones are `other`", () => {
  const counters = new RoutingCounters(SHAPE);
  for (let i = 0; i < 80; i++) counters.record(stepOf({ task: `task-${i}` }));
  counters.record(stepOf({ task: "Not A Label" }));
  counters.record(stepOf({ task: "task-3" }));
  assert.equal(counters.series.length, 65);
  const tokens = new Map(counters.series.map(({ task, cells }) => [task, cells[0]]));
  assert.equal(tokens.get("task-63"), 1);
  assert.equal(tokens.get("task-3"), 2);
  assert.equal(tokens.get("task-64"), undefined);
  assert.equal(tokens.get("other"), 17);
});

test("recording a decode step of 16 tokens, 6 layers and top-4 takes under 0.1 ms", () => {
  const layers = [0, 1, 2, 3, 4, 5];
  const counters = new RoutingCounters({ layers, numExperts: 32, topK: 4 });
  const routing = {
    ids: Uint32Array.from({ length: 64 }, (_, i) => (i * 7) % 32),
    weights: new Float32Array(64).fill(0.25),
    topK: 4,
  };
  const step: RoutedStep = {
    sequences: Array.from({ length: 16 }, (_, i) => ({
      task: `task-${i % 3}`,
      phase: "decode" as const,
      numTokens: 1,
    })),
    numTokens: 16,
    routing: new Map(layers.map((layer) => [layer, routing])),
  };
  for (let i = 0; i < 500; i++) counters.record(step);
  // The fastest of several rounds: other processes share the machine.
  let fastest = Infinity;
  for (let round = 0; round < 10; round++) {
    const startedAt = performance.now();
    for (let i = 0; i < 100; i++) counters.record(step);
    fastest = Math.min(fastest, (performance.now() - startedAt) / 100);
  }
  assert.ok(fastest < 0.1, `${fastest.toFixed(4)} ms`);
});
