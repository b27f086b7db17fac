import assert from "node:assert/strict";
import { test } from "node:test";

import fc from "fast-check";

import { withMinCopies } from "../../../core/placement/min-copies.ts";
import type { PlacedLayers } from "../../../core/placement/planner.ts";

const limits = (memory: readonly number[], bytes = () => 1) => ({
  memory: new Map(memory.map((free, rank) => [rank, free])),
  bytes,
});

/** One layer whose expert e is on rank e % numRanks. */
const roundRobin = (numExperts: number, numRanks: number): PlacedLayers =>
  new Map([[0, Array.from({ length: numExperts }, (_, e) => [{ rank: e % numRanks, share: 1 }])]]);

test("every expert gets a second copy, without a share, where all have room", () => {
  const placed = withMinCopies(roundRobin(6, 3), 2, limits([4, 4, 4]));
  for (const copies of placed.get(0) ?? []) {
    assert.equal(copies.length, 2);
    assert.deepEqual(
      copies.map(({ share }) => share).sort((a, b) => a - b),
      [0, 1],
    );
  }
});

test("copies that were there before stay where they were", () => {
  const before = withMinCopies(roundRobin(4, 2), 2, limits([9, 9, 0]));
  const again = withMinCopies(roundRobin(4, 2), 2, limits([9, 9, 90]), before);
  assert.deepEqual(again, before);
});

test("no rank gets more than its memory, no expert two copies on one rank, and room is not left while it would do", () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 20 }),
      fc.array(fc.integer({ min: 0, max: 20 }), { minLength: 1, maxLength: 5 }),
      fc.integer({ min: 1, max: 4 }),
      (numExperts, spare, minCopies) => {
        const numRanks = spare.length;
        const placed = roundRobin(numExperts, numRanks);
        const held = spare.map((_, rank) => Math.ceil((numExperts - rank) / numRanks));
        const memory = spare.map((more, rank) => Math.max(0, held[rank]) + more);
        const after = withMinCopies(placed, minCopies, limits(memory)).get(0) ?? [];
        const used = memory.map(() => 0);
        for (const [expert, copies] of after.entries()) {
          assert.equal(new Set(copies.map(({ rank }) => rank)).size, copies.length);
          assert.equal(copies.find(({ share }) => share === 1)?.rank, expert % numRanks);
          for (const { rank } of copies) used[rank]++;
        }
        for (const [rank, bytes] of memory.entries()) assert.ok(used[rank] <= bytes);
        for (const copies of after) {
          if (copies.length >= Math.min(minCopies, numRanks)) continue;
          for (const rank of memory.keys()) {
            assert.ok(copies.some((copy) => copy.rank === rank) || used[rank] === memory[rank]);
          }
        }
      },
    ),
  );
});
