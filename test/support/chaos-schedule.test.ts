import assert from "node:assert/strict";
import { test } from "node:test";

import { CHAOS_TURN, chaosSchedule } from "./chaos-schedule.ts";

const SHAPE = { maxFaultMs: 2000, redisOutageMs: 5000, besideShare: 0.5 };

const first = (seed: number, count: number) => chaosSchedule(seed, SHAPE).take(count).toArray();

test("the same seed disturbs in the same way, another in another", () => {
  assert.deepEqual(first(7, 60), first(7, 60));
  assert.notDeepEqual(first(7, 60), first(8, 60));
});

test("every turn has every kind", () => {
  const kinds = new Set(first(1, CHAOS_TURN).map(({ main }) => main.kind));
  for (let seed = 0; seed < 20; seed++) {
    const turns = first(seed, 3 * CHAOS_TURN);
    for (let turn = 0; turn < 3; turn++) {
      const ofTurn = turns.slice(turn * CHAOS_TURN, (turn + 1) * CHAOS_TURN);
      assert.deepEqual(new Set(ofTurn.map(({ main }) => main.kind)), kinds);
    }
  }
});

test("no fault lasts longer than the shape allows", () => {
  const rounds = first(3, 10 * CHAOS_TURN);
  for (const one of rounds.flatMap(({ main, beside }) => (beside ? [main, beside] : [main]))) {
    const longest = one.kind === "Redis outage" ? SHAPE.redisOutageMs : SHAPE.maxFaultMs;
    if ("forMs" in one) assert.ok(one.forMs > 0 && one.forMs <= longest, JSON.stringify(one));
    if ("backAfterMs" in one) assert.ok(one.backAfterMs <= SHAPE.maxFaultMs, JSON.stringify(one));
  }
});

test("about the share that the shape says of the rounds has a second fault, of a link", () => {
  const rounds = first(5, 20 * CHAOS_TURN);
  const second = rounds.flatMap(({ beside }) => beside ?? []);
  const share = second.length / rounds.length;
  assert.ok(share > 0.4 && share < 0.6, `${share}`);
  const kinds = new Set(second.map(({ kind }) => kind));
  assert.deepEqual([...kinds].sort(), ["corrupted bytes", "reset", "slow link"]);
});
