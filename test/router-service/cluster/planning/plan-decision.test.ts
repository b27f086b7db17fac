import assert from "node:assert/strict";
import { test } from "node:test";

import type { PlacedLayers, Plan } from "../../../../core/placement/planner.ts";
import {
  decide,
  isConfirmed,
  isUrgent,
  judge,
  type Look,
  MARGIN,
  needOf,
  nextLook,
} from "../../../../router-service/cluster/planning/plan-decision.ts";
import type { ShardFacts } from "../../../../router-service/cluster/planning/planner-input.ts";

const shardOf = (rank: number, draining = false): ShardFacts => ({
  rank,
  memoryBytes: 1e9,
  draining,
  secondsPerPair: undefined,
  rttSeconds: undefined,
  bytesPerSecond: undefined,
  loadBytesPerSecond: undefined,
});

/** One layer whose experts have copies on these ranks. */
const placed = (...ranks: readonly (readonly number[])[]): PlacedLayers =>
  new Map([[0, ranks.map((copies) => copies.map((rank) => ({ rank, share: 1 / copies.length })))]]);

function planOf(before: number | undefined, after: number, moveSeconds = 0): Plan {
  const target = placed([0], [1]);
  return {
    target,
    stages: [target],
    moves: [{ kind: "load", layer: 0, expert: 1, rank: 1 }],
    why: {
      ...(before !== undefined && { secondsBefore: before }),
      secondsAfter: after,
      moveSecondsPerStep: moveSeconds,
      savingDeviation: 0,
      movedBytes: 10,
      binding: new Map(),
      shards: [],
    },
  };
}

test("a placement lacks what is on shards that are gone or leave, and copies that were asked for", () => {
  const layers = placed([0], [0, 1], [1, 2], [2, 3]);
  assert.deepEqual(needOf(layers, [shardOf(0), shardOf(1, true), shardOf(2)], 2), {
    lost: [3],
    draining: [1],
    crowded: [],
    homeless: 0,
    copiesLacking: 4,
  });
  const lost = needOf(layers, [shardOf(1), shardOf(2), shardOf(3)], 1);
  assert.deepEqual(lost, { lost: [0], draining: [], crowded: [], homeless: 1, copiesLacking: 1 });
  assert.ok(isUrgent(lost));
  assert.ok(
    !isUrgent(
      needOf(
        layers,
        [0, 1, 2].map((rank) => shardOf(rank)),
        1,
      ),
    ),
  );
});

test("a shard that holds more than it has memory for is crowded, unless it is to leave", () => {
  const layers = placed([0], [0, 1], [0, 1], [2]);
  const shards = [0, 1, 2].map((rank) =>
    Object.assign(shardOf(rank, rank === 2), { memoryBytes: 25 }),
  );
  const need = needOf(layers, shards, 1, (_, expert) => (expert === 3 ? 90 : 10));
  assert.deepEqual(need.crowded, [0]);
  const crowded = { ...need, draining: [], homeless: 0 };
  assert.ok(isUrgent(crowded));
  assert.match(decide(planOf(0.01, 0.02, 1), crowded, terms).why, /^shard 0 is short of memory; /);
  assert.deepEqual(needOf(layers, shards, 1, () => 1).crowded, []);
});

const NOTHING = { lost: [], draining: [], crowded: [], homeless: 0, copiesLacking: 0 };
const terms = { margin: MARGIN, copiesLackingAfter: 0 };

test("a plan is published where it saves more than its moves and the margin, else not", () => {
  assert.ok(decide(planOf(0.01, 0.009), NOTHING, terms).publish);
  assert.ok(!decide(planOf(0.01, 0.0096), NOTHING, terms).publish);
  const costly = decide(planOf(0.01, 0.009, 0.0006), NOTHING, terms);
  assert.ok(!costly.publish);
  assert.equal(
    costly.why,
    "a better placement would save 1.00 ms of 10.0 ms per step, too little: " +
      "it must save 1.10 ms (600 µs for its loads, 5 % of a step)",
  );
  const { why } = decide(planOf(3, 0.0239), NOTHING, terms);
  assert.equal(why, "a step is expected to take 23.9 ms instead of 3.00 s; 1 expert is loaded");
  assert.ok(!decide({ ...planOf(0.01, 0.001), stages: [] }, NOTHING, terms).publish);
});

test("what measured speeds may be off by must be saved too, unless shards have come, gone or changed", () => {
  const plan = planOf(0.01, 0.008);
  const doubtful = { ...plan, why: { ...plan.why, savingDeviation: 0.00105 } };
  const kept = decide(doubtful, NOTHING, terms);
  assert.ok(!kept.publish && kept.pending === undefined);
  assert.match(
    kept.why,
    /would save 2\.00 ms of 10\.0 ms .* must save 2\.08 ms \(5 % of a step, 1\.57 ms as measured speeds vary\)$/,
  );
  const better = { ...plan, why: { ...plan.why, savingDeviation: 0.00095 } };
  assert.ok(decide(better, NOTHING, terms).publish);
  assert.ok(decide(doubtful, NOTHING, { ...terms, changed: true }).publish);

  const facts = { shards: [shardOf(0), shardOf(1)], minCopies: 1 };
  const current = { epoch: 1, layers: placed([0], [1]) };
  const at = { plan: doubtful, current, bytesOf: () => 1, leastMs: 10 };
  const first = judge({ ...at, facts, last: undefined, atMs: 0 });
  assert.ok(!first.decision.publish);
  const joined = { ...facts, shards: [...facts.shards, shardOf(2)] };
  const second = judge({ ...at, facts: joined, last: first.look, atMs: 1 });
  assert.ok(second.decision.publish, second.decision.why);
  // It is not the look after it alone that knows of the change.
  const third = judge({ ...at, facts: joined, last: second.look, atMs: 2 });
  assert.ok(third.decision.pending, third.decision.why);
});

test("a plan is published whatever it costs where experts have no home, a shard leaves, or copies are missing", () => {
  const worse = planOf(0.01, 0.02, 1);
  const homeless = { ...NOTHING, lost: [3], homeless: 2 };
  assert.match(
    decide(worse, homeless, terms).why,
    /^shard 3 is gone, 2 experts have no copy elsewhere; 1 expert is loaded/,
  );
  for (const need of [
    homeless,
    { ...NOTHING, draining: [1, 2] },
    { ...NOTHING, copiesLacking: 3 },
  ]) {
    assert.ok(decide(worse, need, terms).publish);
  }
  assert.ok(
    !decide(worse, { ...NOTHING, copiesLacking: 3 }, { ...terms, copiesLackingAfter: 3 }).publish,
  );
  assert.ok(!decide(worse, { ...NOTHING, lost: [3] }, terms).publish);
  assert.equal(decide(worse, NOTHING, terms).why, "no better placement");
});

test("more copies are worth a plan where there will still be fewer than are asked for", () => {
  const shards = [shardOf(0), shardOf(1)];
  const one = needOf(placed([0], [1]), shards, 3);
  const two = needOf(placed([0, 1], [0, 1]), shards, 3);
  assert.deepEqual([one.copiesLacking, two.copiesLacking], [4, 2]);
  const { publish, why } = decide(planOf(0.01, 0.02), one, {
    ...terms,
    copiesLackingAfter: two.copiesLacking,
  });
  assert.ok(publish);
  assert.match(why, /^4 copies are lacking of those that are asked for, then 2; 1 expert is/);
});

test("a plan that only saves time waits until that is confirmed; one that something asks for does not", () => {
  const unconfirmed = { ...terms, confirmed: false };
  const better = planOf(0.01, 0.008);
  const waiting = decide(better, NOTHING, unconfirmed);
  assert.deepEqual([waiting.publish, waiting.pending], [false, true]);
  assert.ok(decide(better, NOTHING, { ...terms, confirmed: true }).publish);
  assert.ok(!decide(planOf(0.01, 0.0099), NOTHING, unconfirmed).pending, "nothing to wait for");
  for (const need of [
    { ...NOTHING, lost: [3] },
    { ...NOTHING, lost: [3], homeless: 1 },
    { ...NOTHING, draining: [1] },
    { ...NOTHING, copiesLacking: 3 },
  ]) {
    assert.ok(decide(better, need, unconfirmed).publish);
  }
  assert.ok(decide(better, NOTHING, { ...unconfirmed, policy: "eplb" }).publish);
});

test("what is worth far more than it costs waits for less long", () => {
  const facts = { shards: [shardOf(0)], minCopies: 1 };
  const current = { epoch: 1, layers: placed([0], [0]) };
  const seen = (after: number) => {
    const at = { plan: planOf(0.01, after), current, facts, bytesOf: () => 1, leastMs: 30 };
    const { look } = judge({ ...at, last: undefined, atMs: 0 });
    return [9, 10, 29, 30].filter((atMs) => judge({ ...at, last: look, atMs }).decision.publish);
  };
  assert.deepEqual(seen(0.0091), [30]);
  assert.deepEqual(seen(0.0089), [10, 29, 30]);
});

test("what a plan saves is confirmed by looks over a time at the same epoch, or by a change of shards", () => {
  const shards = [shardOf(0), shardOf(1)];
  const at = (atMs: number, others: Partial<Look> = {}) => ({ atMs, epoch: 1, shards, ...others });
  const first = nextLook(undefined, at(0), true);
  assert.ok(!isConfirmed(undefined, at(0), 500));
  assert.ok(!isConfirmed(first, at(100), 500), "too soon");
  assert.ok(isConfirmed(first, at(500), 500));
  assert.ok(isConfirmed(nextLook(first, at(100), true), at(500), 500), "a look between");
  assert.ok(!isConfirmed(nextLook(first, at(100), false), at(500), 500), "not found between");
  assert.ok(!isConfirmed(first, at(500, { epoch: 2 }), 500), "another placement");
  assert.ok(!isConfirmed(nextLook(first, at(400, { epoch: 2 }), true), at(500, { epoch: 2 }), 500));
  for (const changed of [
    [shardOf(0)],
    [shardOf(0), shardOf(1), shardOf(2)],
    [shardOf(0), shardOf(2)],
    [shardOf(0), { ...shardOf(1), memoryBytes: 1 }],
    [shardOf(0), shardOf(1, true)],
  ]) {
    const quiet = nextLook(undefined, at(0), false);
    assert.ok(isConfirmed(quiet, at(1, { shards: changed }), 500));
  }
});
