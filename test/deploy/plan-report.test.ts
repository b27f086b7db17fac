import assert from "node:assert/strict";
import { test } from "node:test";

import { formatPlan, type PlanView } from "../../deploy/plan-report.ts";

const planOf = (fields: Partial<PlanView>): PlanView => ({
  worth_it: false,
  why: "no better placement",
  predicted_step_seconds_before: 3,
  predicted_step_seconds: 0.0239,
  moves: { loads: 0, drops: 0, bytes: 0, stages: 0 },
  shards: [
    { rank: 0, experts: 1, bytes: 1024, memory_bytes: 10737.4, seconds_per_step: 0.01 },
    { rank: "local", experts: 2, bytes: 2048, memory_bytes: 2 ** 30, seconds_per_step: 0.002 },
  ],
  ...fields,
});
const head = (fields: Partial<PlanView>) => formatPlan(planOf(fields)).split("\n\n")[0].split("\n");

test("a plan that would be done says why, what it brings, what moves and what each shard would hold", () => {
  const moves = { loads: 1, drops: 2, bytes: 3 * 2 ** 20, stages: 1 };
  const text = formatPlan(planOf({ worth_it: true, why: "shard 1 is gone", moves }));
  assert.equal(
    text,
    `this would be done:
  shard 1 is gone
experts of a step: 3.00 s → 23.9 ms
moves: 1 load (3.00 MiB), 2 drops, in 1 stage

shard  experts    memory        of  per step
0            1  1.00 KiB  10.5 KiB   10.0 ms
local        2  2.00 KiB  1.00 GiB   2.00 ms
`,
  );
  const lost = head({ worth_it: true, moves, predicted_step_seconds_before: null });
  assert.equal(lost[2], "experts of a step: not all have a copy → 23.9 ms");
});

test("a plan that is not worth it is told apart from what would be done, and one that moves nothing has no moves", () => {
  const moves = { loads: 2, drops: 1, bytes: 2 ** 20, stages: 1 };
  assert.deepEqual(head({ why: "too little", moves }), [
    "nothing would be done:",
    "  too little",
    "that placement: experts of a step 3.00 s → 23.9 ms; moves: 2 loads (1.00 MiB), 1 drop, in 1 stage",
  ]);
  assert.deepEqual(head({ predicted_step_seconds_before: 0.0239 }), [
    "nothing would be done:",
    "  no better placement",
    "experts of a step: 23.9 ms",
  ]);
  const shares = { ...moves, loads: 0, drops: 0, bytes: 0 };
  assert.equal(head({ worth_it: true, moves: shares }).at(-1), "moves: none, only shares change");
});
