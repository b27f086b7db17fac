import assert from "node:assert/strict";
import { test } from "node:test";

import { assess } from "../../../../router-service/cluster/planning/assessment.ts";
import { plannerInput } from "../../../core/placement/inputs.ts";

const GONE = 7;
const on = (...ranks: readonly number[]) =>
  ranks.map((rank) => ({ rank, share: 1 / ranks.length }));

test("a placement with a living copy of every expert has expected times, whoever is gone", () => {
  const input = plannerInput({ loads: [[10, 20]], room: [1, 1], steps: [] });
  const { stepSeconds, imbalance, missing, noRoom } = assess(
    input,
    new Map([[0, [on(0, GONE), on(1)]]]),
  );
  assert.ok(stepSeconds !== undefined && Math.abs(stepSeconds - 20) < 1e-9);
  assert.ok(imbalance !== undefined && Math.abs(imbalance - 1 / 3) < 1e-9);
  assert.deepEqual([missing, noRoom], [{ experts: 0, homeless: 0 }, undefined]);
});

test("one without has none, and says how many experts have no copy and no room", () => {
  const input = plannerInput({ loads: [[10, 20, 30]], room: [2] });
  const placed = new Map([[0, [on(0), on(GONE), on(GONE)]]]);
  const { stepSeconds, imbalance, missing, noRoom, binding, layerSeconds } = assess(input, placed);
  assert.deepEqual([stepSeconds, imbalance, layerSeconds], [undefined, undefined, undefined]);
  assert.equal(binding.size, 0);
  assert.deepEqual(missing, { experts: 2, homeless: 1 });
  assert.match(noRoom ?? "", /3 experts take 3 bytes; 1 shard offers 2 bytes/);
  const roomy = assess(plannerInput({ loads: [[10, 20, 30]], room: [3] }), placed);
  assert.deepEqual([roomy.missing, roomy.noRoom], [{ experts: 2, homeless: 0 }, undefined]);
});

test("where no shard is left, every expert is without a copy and without room", () => {
  const input = plannerInput({ loads: [[10, 20]], room: [] });
  const { stepSeconds, missing, noRoom } = assess(input, new Map([[0, [on(GONE), on(GONE)]]]));
  assert.equal(stepSeconds, undefined);
  assert.deepEqual(missing, { experts: 2, homeless: 2 });
  assert.match(noRoom ?? "", /0 shards/);
});
