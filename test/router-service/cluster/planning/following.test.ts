import assert from "node:assert/strict";
import { test } from "node:test";

import type { PlacedLayers } from "../../../../core/placement/planner.ts";
import { emptyLists, NO_PARTNER } from "../../../../core/statistics/pairs.ts";
import { followingOf } from "../../../../router-service/cluster/planning/following.ts";

const on = (...ranks: readonly number[]) =>
  ranks.map((rank) => ({ rank, share: 1 / ranks.length }));
const LAYERS = [2, 5];
const load = new Float64Array([3, 1, 2, 2]);

/** Expert 0 is followed by 1 in 6 of 8 tokens that were counted; of the others the lists know nothing. */
function pairs() {
  const lists = emptyLists(1, 2, 1);
  lists.partners.set([1, NO_PARTNER]);
  lists.counts[0] = 6;
  lists.sums[0] = 8;
  return lists;
}

test("experts that follow each other on one shard count, by their shares; what is not listed counts as chance", () => {
  const apart: PlacedLayers = new Map([
    [2, [on(0), on(1)]],
    [5, [on(0), on(1)]],
  ]);
  // By chance: 3/4 of the first layer on rank 0, a half of the second.
  assert.deepEqual(followingOf(apart, LAYERS, pairs(), load), { together: 1 / 8, byChance: 0.5 });
  const together: PlacedLayers = new Map([
    [2, [on(0), on(1)]],
    [5, [on(1), on(0)]],
  ]);
  assert.deepEqual(followingOf(together, LAYERS, pairs(), load), {
    together: 7 / 8,
    byChance: 0.5,
  });
  const copied: PlacedLayers = new Map([
    [2, [on(0), on(1)]],
    [5, [on(1), on(0, 1)]],
  ]);
  const half = followingOf(copied, LAYERS, pairs(), load);
  assert.ok(Math.abs((half?.together ?? 0) - (6 / 2 + 2 * half!.byChance) / 8) < 1e-12);
});

test("nothing is said where no pairs were counted", () => {
  const placed: PlacedLayers = new Map(LAYERS.map((layer) => [layer, [on(0), on(1)]]));
  assert.equal(followingOf(placed, LAYERS, emptyLists(1, 2, 1), load), undefined);
});
