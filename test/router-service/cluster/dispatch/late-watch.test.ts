import assert from "node:assert/strict";
import { describe, it } from "node:test";

import { Changes } from "../../../../router-service/cluster/changes.ts";
import { LateWatch } from "../../../../router-service/cluster/dispatch/late-watch.ts";

/** Timers that keep the process alive. */
const timers = () => process.getActiveResourcesInfo().filter((kind) => kind === "Timeout").length;

function spin(milliseconds: number): void {
  const until = performance.now() + milliseconds;
  while (performance.now() < until);
}

function lateAfter(watch: LateWatch, afterMs: number): Promise<number> {
  const began = performance.now();
  return new Promise((resolve) => {
    watch.add(afterMs, true, () => resolve(performance.now() - began));
  });
}

describe("the watch for late answers", () => {
  it("tells of each when it is due, whatever was due first", async () => {
    const watch = new LateWatch(new Changes());
    const order: number[] = [];
    const waits = [60, 20, 40].map(async (afterMs) => {
      assert.ok((await lateAfter(watch, afterMs)) >= afterMs);
      order.push(afterMs);
    });
    await Promise.all(waits);
    assert.deepEqual(order, [20, 40, 60]);
  });

  it("runs one timer for many answers, and none where lateness does not matter", async () => {
    const watch = new LateWatch(new Changes());
    const before = timers();
    for (let i = 0; i < 10; i++) watch.add(5, false, () => assert.fail("it does not matter"));
    assert.equal(timers(), before);
    const late = [10, 11, 12].map((afterMs) => lateAfter(watch, afterMs));
    assert.equal(timers(), before + 1);
    await Promise.all(late);
    assert.equal(timers(), before);
  });

  it("tells after a change of those that did not matter before it", async () => {
    const changes = new Changes();
    const watch = new LateWatch(changes);
    const late = new Promise<void>((resolve) => watch.add(1, false, resolve));
    changes.notify();
    await late;
  });

  it("reads what has arrived before it calls an answer late, and lets what was sent meanwhile be", async () => {
    const watch = new LateWatch(new Changes());
    const late: string[] = [];
    const first = watch.add(20, true, () => late.push("first"));
    const { promise, resolve } = Promise.withResolvers<void>();
    // Comes between the watch's timer and its look, as an answer that was waiting to be read.
    setTimeout(() => {
      watch.delete(first);
      watch.add(5, true, () => {
        late.push("second");
        resolve();
      });
      spin(10);
      setImmediate(() => late.push("looked"));
    }, 25);
    spin(40);
    await promise;
    assert.deepEqual(late, ["looked", "second"]);
  });
});
