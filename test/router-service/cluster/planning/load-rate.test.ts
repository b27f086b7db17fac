import assert from "node:assert/strict";
import { test } from "node:test";

import type { PlacedLayers } from "../../../../core/placement/planner.ts";
import { LoadRate } from "../../../../router-service/cluster/planning/load-rate.ts";

const MIB = 2 ** 20;
const placed = (...ranks: readonly (readonly number[])[]): PlacedLayers =>
  new Map([[0, ranks.map((copies) => copies.map((rank) => ({ rank, share: 1 / copies.length })))]]);

test("the shard that had most to load says how fast loading is, newer moves more than older ones", () => {
  const rate = new LoadRate();
  assert.equal(rate.bytesPerSecond, undefined);
  const bytes = () => MIB;
  rate.observe(placed([0], [0], [1]), placed([0, 1], [1], [0, 1]), 2, bytes);
  assert.equal(rate.bytesPerSecond, MIB, "shard 1 got two experts in 2 s");
  rate.observe(placed([0]), placed([1]), 0.5, bytes);
  assert.equal(rate.bytesPerSecond, 1.5 * MIB);
});

test("moves that load next to nothing say nothing", () => {
  const rate = new LoadRate();
  rate.observe(placed([0]), placed([1]), 1, () => 1000);
  rate.observe(placed([0, 1]), placed([1]), 1, () => MIB);
  assert.equal(rate.bytesPerSecond, undefined);
});
