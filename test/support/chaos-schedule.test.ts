import assert from "node:assert/strict";
import { test } from "node:test";

import { CHAOS_TURN, chaosSchedule } from "./chaos-schedule.ts";

const SHAPE = { maxFaultMs: 2000, redisOutageMs: 5000 };

const first = (seed: number, count: number) => chaosSchedule(seed, SHAPE).take(count).toArray();

test("the same seed disturbs in the same way, another in another", () => {
  assert.deepEqual(first(7, 60), first(7, 60));
  assert.notDeepEqual(first(7, 60), first(8, 60));
});

test("every turn has every kind", () => {
  const kinds = new Set(first(1, CHAOS_TURN).map(({ kind }) => kind));
  for (let seed = 0; seed < 20; seed++) {
    const turns = first(seed, 3 * CHAOS_TURN);
    for (let turn = 0; turn < 3; turn++) {
      const ofTurn = turns.slice(turn * CHAOS_TURN, (turn + 1) * CHAOS_TURN);
      assert.deepEqual(new Set(ofTurn.map(({ kind }) => kind)), kinds);
    }
  }
});

test("no fault lasts longer than the shape allows", () => {
  for (const one of first(3, 10 * CHAOS_TURN)) {
    const longest = one.kind === "Redis outage" ? SHAPE.redisOutageMs : SHAPE.maxFaultMs;
    if ("forMs" in one) assert.ok(one.forMs > 0 && one.forMs <= longest, JSON.stringify(one));
    if ("backAfterMs" in one) assert.ok(one.backAfterMs <= SHAPE.maxFaultMs, JSON.stringify(one));
  }
});
