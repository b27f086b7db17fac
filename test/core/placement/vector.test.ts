import assert from "node:assert/strict";
import { test } from "node:test";

import { eplb } from "../../../core/placement/eplb.ts";
import { planPlacement } from "../../../core/placement/planner.ts";
import { plannerInput } from "./inputs.ts";

/** Loads on which replicating and packing one after the other, both greedily, goes wrong; mean 181.25 on 8 shards. */
const LOADS = [600, 560, 120, 120, 20, 10, 10, 10];

test("EPLB reaches 232.0 on the vector, with a shard that holds the same expert twice", () => {
  const { experts, copies } = eplb(LOADS, 16, 8);
  const loads = experts.map((slots) =>
    slots.reduce((sum, expert) => sum + LOADS[expert] / copies[expert], 0),
  );
  assert.equal(Math.max(...loads), 232);
  assert.ok(experts.some(([first, second]) => first === second));
});

test("split weights bring the vector to within 2 % of the mean", () => {
  const { why, target } = planPlacement(
    plannerInput({ loads: [LOADS], room: [2, 2, 2, 2, 2, 2, 2, 2], steps: [] }),
  );
  assert.ok(why.secondsAfter <= 184.9, `slowest shard ${why.secondsAfter}`);
  const held = new Map<number, number>();
  for (const copies of target.get(0)!) {
    for (const { rank } of copies) held.set(rank, (held.get(rank) ?? 0) + 1);
  }
  assert.deepEqual([...held.values()], [2, 2, 2, 2, 2, 2, 2, 2]);
});
