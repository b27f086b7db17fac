import assert from "node:assert/strict";
import { test } from "node:test";

import fc from "fast-check";

import type { PlacedLayers } from "../../../core/placement/input.ts";
import { movesOf, stagesOf } from "../../../core/placement/moves.ts";

/** A layer from the ranks that hold each expert; copies share evenly. */
function placed(...holders: readonly (readonly number[])[]): PlacedLayers {
  return new Map([
    [3, holders.map((ranks) => ranks.map((rank) => ({ rank, share: 1 / ranks.length })))],
  ]);
}

function limits(...memory: readonly number[]): Parameters<typeof stagesOf>[2] {
  return { memory: new Map(memory.entries()), bytes: () => 1 };
}

function ranks(layers: PlacedLayers): number[][] {
  return layers.get(3)!.map((copies) => copies.map(({ rank }) => rank));
}

test("experts change places over a shard that has room", () => {
  const stages = stagesOf(placed([0], [1]), placed([1], [0]), limits(1, 1, 1));
  assert.deepEqual(stages.map(ranks), [
    [[2], [1]],
    [[2], [0]],
    [[1], [0]],
  ]);
  assert.deepEqual(movesOf(placed([0], [1]), stages), [
    { kind: "load", layer: 3, expert: 0, rank: 2 },
    { kind: "drop", layer: 3, expert: 0, rank: 0 },
    { kind: "load", layer: 3, expert: 1, rank: 0 },
    { kind: "drop", layer: 3, expert: 1, rank: 1 },
    { kind: "load", layer: 3, expert: 0, rank: 1 },
    { kind: "drop", layer: 3, expert: 0, rank: 2 },
  ]);
});

test("what is in each other's way stays where no shard has room", () => {
  assert.deepEqual(stagesOf(placed([0], [1]), placed([1], [0]), limits(1, 1)), []);
});

test("a spare copy gives way to a change of places, and comes back", () => {
  const stages = stagesOf(placed([0], [1], [0, 1]), placed([1], [0], [0, 1]), limits(2, 2));
  assert.deepEqual(ranks(stages.at(-1)!), [[1], [0], [0, 1]]);
});

test("with nothing left to reload, a copy that gives way comes back where its expert would have too few", () => {
  const before = placed([1], [1, 2], [0, 2], [0]);
  const after = placed([0], [1, 2], [0, 2], [1]);
  const full = { ...limits(2, 2, 2), reloadBytes: 0 };
  assert.deepEqual(ranks(stagesOf(before, after, full).at(-1)!), [[0], [2], [2], [1]]);
  const asked = stagesOf(before, after, { ...full, minCopies: 2 });
  assert.deepEqual(asked.at(-1), after);
});

/** Ranks of four experts, one or two of three for each. */
const holders = fc.array(fc.subarray([0, 1, 2], { minLength: 1, maxLength: 2 }), {
  minLength: 4,
  maxLength: 4,
});

function held(layers: readonly (readonly number[])[], rank: number): number {
  return layers.filter((on) => on.includes(rank)).length;
}

test("no expert ends with fewer copies than are asked for because one made room for others", () => {
  fc.assert(
    fc.property(holders, holders, fc.nat(1), (before, after, reloadBytes) => {
      const memory = [0, 1, 2].map((rank) => Math.max(held(before, rank), held(after, rank)));
      const within = { ...limits(...memory), reloadBytes, minCopies: 2 };
      const stages = stagesOf(placed(...before), placed(...after), within);
      const last = stages.length === 0 ? before : ranks(stages.at(-1)!);
      for (const [expert, copies] of last.entries()) {
        const asked = Math.min(2, before[expert].length, after[expert].length);
        assert.ok(copies.length >= asked, `expert ${expert}: ${copies.length} of ${asked} copies`);
      }
    }),
    { numRuns: 500 },
  );
});

test("a copy that is parked goes where it belongs, not back", () => {
  const stages = stagesOf(placed([0], [0], [1]), placed([1], [1], [0]), limits(2, 2));
  assert.deepEqual(ranks(stages.at(-1)!), [[1], [1], [0]]);
});

test("new shares alone are one stage, the same shares none", () => {
  const even = placed([0, 1]);
  const uneven = new Map([
    [
      3,
      [
        [
          { rank: 0, share: 0.25 },
          { rank: 1, share: 0.75 },
        ],
      ],
    ],
  ]);
  assert.deepEqual(stagesOf(even, uneven, limits(1, 1)), [uneven]);
  assert.deepEqual(stagesOf(even, even, limits(1, 1)), []);
});
