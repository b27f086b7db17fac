import assert from "node:assert/strict";
import { describe, it } from "node:test";

import type { LaneOrder } from "../../../router-service/engine/gpu/gpu-lane.ts";
import { runInTurns } from "../../../router-service/engine/turns.ts";

const never = () => new AbortController().signal;

/** Passes the layers 0 to 3, each after `enter`. */
async function passLayers(order: LaneOrder, enter: (layer: number) => Promise<void> | void) {
  for (let layer = 0; layer < 4; layer++) {
    await order.before?.(layer);
    await enter(layer);
    order.after?.(layer);
  }
}

describe("two lanes in turns", () => {
  it("run at the same time and give both results", async () => {
    const { promise, resolve } = Promise.withResolvers<void>();
    const first = async () => {
      await promise;
      return "a";
    };
    const second = async () => {
      resolve();
      return "b";
    };
    assert.deepEqual(await runInTurns(never(), false, [first, second]), ["a", "b"]);
  });

  it("in order: the second enters no layer before the first has passed it", async () => {
    const entered: string[] = [];
    await runInTurns(never(), true, [
      (_, order) =>
        passLayers(order, async (layer) => {
          for (let i = 0; i < 5; i++) await Promise.resolve();
          entered.push(`a${layer}`);
        }),
      (_, order) => passLayers(order, (layer) => void entered.push(`b${layer}`)),
    ]);
    assert.deepEqual(entered, ["a0", "b0", "a1", "b1", "a2", "b2", "a3", "b3"]);
  });

  for (const failing of ["first", "second"] as const) {
    it(`where the ${failing} fails the other is aborted, and both have ended`, async () => {
      const failure = new Error("a shard is lost");
      let ended = false;
      const fail = async () => {
        throw failure;
      };
      const wait = async (signal: AbortSignal, order: LaneOrder) => {
        await order.before?.(0);
        await new Promise((resolve) => {
          if (signal.aborted) resolve(undefined);
          else signal.addEventListener("abort", resolve);
        });
        await Promise.resolve();
        ended = true;
        throw signal.reason;
      };
      const lanes = failing === "first" ? ([fail, wait] as const) : ([wait, fail] as const);
      const run = runInTurns<never>(never(), failing === "second", lanes);
      await assert.rejects(run, failure);
      assert.equal(ended, true);
    });
  }

  it("in order: the second does not wait for a first that failed", async () => {
    const failure = new Error("a shard is lost");
    const run = runInTurns<void>(never(), true, [
      async () => {
        throw failure;
      },
      (_, order) => passLayers(order, () => assert.fail("it is to be aborted first")),
    ]);
    await assert.rejects(run, failure);
  });

  it("reject with the reason of the step's signal", async () => {
    const controller = new AbortController();
    const wait = (signal: AbortSignal) =>
      new Promise<never>((_, reject) => {
        signal.addEventListener("abort", () => reject(signal.reason));
      });
    const run = runInTurns(controller.signal, false, [wait, wait]);
    const reason = new Error("all clients left");
    controller.abort(reason);
    await assert.rejects(run, reason);
  });
});
