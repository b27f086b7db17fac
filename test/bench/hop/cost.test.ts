import assert from "node:assert/strict";
import { test } from "node:test";

import { hopCosts, hopTable } from "../../../bench/hop/cost.ts";

const device = { readBackMs: [0.2, 0.4, 0.3], writeRunReadMs: [0.5, 0.6, 0.4] };

test("the cost of a hop is what the shards add to a token, per MoE layer, beside the sum of its floors", () => {
  const [cost] = hopCosts(
    [
      { shards: 2, tpotMs: [30, 28, 29], echoMs: [0.7, 0.8, 0.9] },
      { shards: 0, tpotMs: [17, 16, 18], echoMs: [] },
    ],
    device,
    6,
  );
  assert.equal(cost.shards, 2);
  assert.equal(cost.tpotMs, 29);
  assert.equal(cost.costMs, 2);
  assert.ok(Math.abs(cost.floorMs - 1.6) < 1e-12);
  assert.ok(Math.abs(cost.ratio - 1.25) < 1e-12);
  const table = hopTable(17, [cost]);
  assert.match(table, /\| 0 \| 17\.000 \| 1\.00 \|/);
  assert.match(
    table,
    /\| 2 \| 29\.000 \| 1\.71 \| 2\.000 \| 0\.800 \| 0\.300 \| 0\.500 \| 1\.600 \| 1\.25 \|/,
  );
});

test("a hop has no cost without a measurement to compare with", () => {
  assert.throws(() => hopCosts([], device, 6), /without shards/);
});
