import assert from "node:assert/strict";
import { test } from "node:test";

import { coveredMs, overlapBound } from "../../../bench/overlap/layer-times.ts";

test("time that several intervals share counts once, and only between the two moments", () => {
  const intervals = [
    { from: 30, to: 50 },
    { from: 0, to: 10 },
    { from: 5, to: 20 },
    { from: 6, to: 8 },
  ];
  assert.equal(coveredMs(intervals, 0, 100), 40);
  assert.equal(coveredMs(intervals, 8, 35), 17);
  assert.equal(coveredMs(intervals, 20, 30), 0);
  assert.equal(coveredMs([], 0, 10), 0);
});

test("halves save what router, shards and wire wait for one another, bounded by the slowest", () => {
  assert.equal(overlapBound({ router: 10, shards: 10, wire: 0 }), 2);
  assert.equal(overlapBound({ router: 10, shards: 10, wire: 4 }), 24 / 14);
  assert.equal(overlapBound({ router: 30, shards: 10, wire: 0 }), 4 / 3);
  assert.equal(overlapBound({ router: 0, shards: 0, wire: 4 }), 1);
});
