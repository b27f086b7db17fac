import assert from "node:assert/strict";
import { test } from "node:test";

import { assignPairs } from "../../../core/placement/assign-pairs.ts";
import { copyTable, type SplitCosts } from "../../../core/placement/copy-table.ts";
import { chooseReplicas } from "../../../core/placement/split.ts";

/** Shards without distance that take a second per pair, except for what is said. */
function splitCosts(numShards: number, others: Partial<SplitCosts> = {}): SplitCosts {
  return {
    fixed: new Float64Array(numShards),
    perHop: new Float64Array(numShards),
    perRow: new Float64Array(numShards),
    perPair: new Float64Array(numShards).fill(1),
    perExpert: new Float64Array(numShards),
    ...others,
  };
}

function table(numShards: number, ...holders: readonly (readonly number[])[]) {
  return copyTable(
    holders.map((ranks) => ranks.map((rank) => ({ rank, share: 1 / ranks.length }))),
    Array.from({ length: numShards }, (_, rank) => rank),
  );
}

test("copies take what evens out the experts that have no choice", () => {
  const pairs = chooseReplicas([6, 2, 8], table(2, [0], [1], [0, 1]), splitCosts(2));
  assert.deepEqual([...pairs], [6, 2, 2, 6]);
});

test("a shard of twice the speed takes twice the pairs", () => {
  const costs = splitCosts(2, { perPair: Float64Array.of(1, 2) });
  assert.deepEqual([...chooseReplicas([30], table(2, [0, 1]), costs)], [20, 10]);
});

test("few pairs stay on the shards that are visited anyway", () => {
  const costs = splitCosts(3, { perHop: Float64Array.of(10, 10, 10) });
  assert.deepEqual([...chooseReplicas([1, 3], table(3, [1], [0, 1, 2]), costs)], [1, 0, 3, 0]);
});

test("a token whose experts are everywhere goes to one shard where a message costs more than its pairs", () => {
  const everywhere = table(4, ...Array.from({ length: 6 }, () => [0, 1, 2, 3]));
  const near = splitCosts(4, { perHop: new Float64Array(4).fill(10) });
  assert.equal(new Set(assignPairs([0, 1, 2, 3, 4, 5], 6, everywhere, near)).size, 1);
  const free = splitCosts(4);
  assert.equal(new Set(assignPairs([0, 1, 2, 3, 4, 5], 6, everywhere, free)).size, 4);
});

test("a copy that can not be reached takes nothing while another can", () => {
  const costs = splitCosts(2, { fixed: Float64Array.of(Infinity, 0) });
  assert.deepEqual([...chooseReplicas([5, 1], table(2, [0, 1], [0]), costs)], [0, 5, 1]);
});
