import assert from "node:assert/strict";
import { test } from "node:test";

import { seededRandom } from "../../../../core/random.ts";
import { Outage } from "../../../../router-service/cluster/planning/outage.ts";

test("the router that led last plans for what has been urgent for a second, another after three", () => {
  for (const [ledLast, waitMs] of [
    [true, 1_000],
    [false, 3_000],
  ] as const) {
    const outage = new Outage(Math.random);
    assert.equal(outage.waitMs(false, ledLast, 10), undefined);
    assert.equal(outage.waitMs(true, ledLast, 100), waitMs);
    assert.equal(outage.waitMs(true, ledLast, 600), waitMs - 500);
    assert.equal(outage.waitMs(true, ledLast, 5_000), 0);
    assert.equal(outage.waitMs(false, ledLast, 5_001), undefined);
    assert.equal(outage.waitMs(true, ledLast, 6_000), waitMs);
    outage.end();
    assert.equal(outage.waitMs(true, ledLast, 9_000), waitMs);
  }
});

test("epochs of a router alone only grow, and meet neither another's nor those that are published one by one", () => {
  const [one, other] = [1, 2].map((seed) => new Outage(seededRandom(seed)));
  const given = new Set<number>();
  let last = 0;
  for (let i = 0; i < 1_000; i++) {
    const epoch = one.epochAfter(7);
    assert.ok(epoch > last + 1_000_000 && Number.isSafeInteger(epoch));
    assert.ok(one.gave(epoch) && !one.gave(last));
    last = epoch;
    for (const each of [epoch, other.epochAfter(7)]) {
      assert.ok(!given.has(each));
      given.add(each);
    }
  }
});
