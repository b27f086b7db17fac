import assert from "node:assert/strict";
import { test } from "node:test";

import fc from "fast-check";

import { RoutingCounters } from "../../../core/statistics/counters.ts";
import type { RoutedStep } from "../../../core/statistics/routed-step.ts";
import { decodeLists, encodeLists, listField } from "../../../core/statistics/pair-encoding.ts";
import {
  listsOfCells,
  NO_PARTNER,
  PairCounts,
  sumLists,
  togetherPairs,
  TOP_PARTNERS,
  TURN_TOKENS,
} from "../../../core/statistics/pairs.ts";

const LARGE = { layers: Array.from({ length: 61 }, (_, i) => i + 3), numExperts: 256, topK: 8 };

/** Tokens of a model of 61 × 256: expert e and its neighbour e ^ 1 always together, the others spread. */
function stepOf(numTokens: number, seed: number): RoutedStep {
  const ids = new Uint32Array(numTokens * 8);
  for (let t = 0; t < numTokens; t++) {
    for (let k = 0; k < 4; k++) {
      const one = ((Math.imul(t + seed, 0x9e3779b1) >>> (5 * k)) & 63) + k * 64;
      ids[t * 8 + 2 * k] = one;
      ids[t * 8 + 2 * k + 1] = one ^ 1;
    }
  }
  const routing = { ids, weights: new Float32Array(ids.length).fill(0.125), topK: 8 };
  return {
    sequences: [{ task: "a", phase: "prefill", numTokens }],
    numTokens,
    routing: new Map(LARGE.layers.map((layer) => [layer, routing])),
  };
}

/** One layer is listed in each step. */
function endTurn(counts: PairCounts): void {
  const before = counts.changed.size;
  counts.endStep(TURN_TOKENS);
  for (let step = 1; step < counts.span; step++) counts.endStep(0);
  assert.ok(counts.changed.size <= before + counts.span);
}

test("at 61 layers of 256 experts pairs take under 10 MB, whatever is counted, and every layer has its turn", () => {
  const counters = new RoutingCounters(LARGE);
  const bytes = () => counters.together.bytes + counters.next.bytes;
  assert.ok(bytes() < 10e6, `${bytes()} bytes`);
  for (let turn = 0; turn < 16; turn++) {
    // The turn's tokens: few distinct, so that the test is short.
    counters.record(stepOf(256, 256 * turn));
    endTurn(counters.together);
    endTurn(counters.next);
  }
  assert.ok(bytes() < 10e6, `${bytes()} bytes`);
  const { together, next } = counters;
  for (const [counts, layers] of [
    [together, 61],
    [next, 60],
  ] as const) {
    const { lists, changed } = counts;
    assert.ok(lists !== undefined);
    assert.equal(changed.size, layers);
    assert.ok(lists.sums.every((sum) => sum > 0));
  }
  for (let row = 0; row < 61 * 256; row++) {
    const first = together.lists!.partners[row * TOP_PARTNERS];
    assert.equal(first, (row % 256) ^ 1, `row ${row}`);
  }
});

test("an encoded layer of lists takes 33 KB at 256 experts and comes back", () => {
  const counts = new PairCounts(LARGE, "together");
  counts.add(0, 64, stepOf(64, 5).routing.get(3)!.ids);
  endTurn(counts);
  const bytes = encodeLists(counts.lists!, 0, 256);
  assert.ok(bytes.length < 33_000, `${bytes.length}`);
  const fields = [Buffer.from(listField("together", 0)), bytes];
  const back = decodeLists(fields, "together", 61, LARGE);
  assert.deepEqual(back, counts.lists);
  assert.ok(decodeLists(fields, "next", 60, LARGE).sums.every((sum) => sum === 0));
});

test("lists that do not fit the model are left out", () => {
  const bytes = Buffer.alloc(100);
  for (const field of ["together:0", "together:99", "together", "x:0"]) {
    const lists = decodeLists([Buffer.from(field), bytes], "together", 61, LARGE);
    assert.ok(lists.partners.every((partner) => partner === NO_PARTNER));
  }
});

const SMALL = { layers: [0, 1], numExperts: 5, topK: 3 };
const arbitraryCells = fc
  .array(fc.nat(20), { minLength: 20, maxLength: 20 })
  .map((cells) => Float64Array.from(cells));

test("lists hold each expert's largest counts, largest first, in both directions", () => {
  fc.assert(
    fc.property(arbitraryCells, fc.integer({ min: 1, max: 5 }), (cells, topN) => {
      const all = listsOfCells(SMALL, "together", cells, 5);
      const some = listsOfCells(SMALL, "together", cells, topN);
      for (let row = 0; row < 10; row++) {
        const counts = all.counts.subarray(row * 5, row * 5 + 5);
        assert.deepEqual(
          [...counts].sort((a, b) => b - a),
          [...counts],
        );
        assert.deepEqual(
          some.counts.subarray(row * topN, row * topN + topN),
          counts.slice(0, topN),
        );
      }
      const sum = cells.reduce((total, one) => total + one, 0);
      assert.equal(
        all.counts.reduce((total, one) => total + one, 0),
        2 * sum,
      );
      assert.equal(all.sums[0] + all.sums[1], sum);
    }),
  );
});

test("lists of several writers add up", () => {
  fc.assert(
    fc.property(arbitraryCells, arbitraryCells, (one, other) => {
      const lists = [one, other].map((cells) => listsOfCells(SMALL, "together", cells, 5));
      const both = listsOfCells(
        SMALL,
        "together",
        one.map((count, i) => count + other[i]),
        5,
      );
      assert.deepEqual(sumLists(5, lists, 2, 5), both);
    }),
  );
});

test("pairs per step are the part of a step's tokens that chooses both", () => {
  const counts = new PairCounts(SMALL, "together");
  counts.add(0, 4, Uint32Array.of(0, 1, 2, 0, 1, 3, 0, 2, 3, 1, 2, 3));
  const lists = listsOfCells(SMALL, "together", counts.cells, 2);
  const { partners, tokens } = togetherPairs(lists, SMALL, 10);
  assert.deepEqual([...partners.subarray(0, 2)], [1, 2]);
  assert.deepEqual([...tokens.subarray(0, 4)], [5, 5, 5, 5]);
  assert.ok(tokens.subarray(10).every((one) => one === 0));
});
