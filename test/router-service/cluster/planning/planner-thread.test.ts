import assert from "node:assert/strict";
import { after, describe, it } from "node:test";

import {
  PlacementError,
  PlannerInputError,
  planPlacement,
  type PlannerInput,
} from "../../../../core/placement/planner.ts";
import { PlannerThread } from "../../../../router-service/cluster/planning/planner-thread.ts";
import { plannerInput } from "../../../core/placement/inputs.ts";

it("a thread that warms up answers what it is asked meanwhile, as any other", async () => {
  const thread = new PlannerThread({ warm: true });
  const input = plannerInput({ loads: [[1, 2, 3]], room: [2, 1] });
  assert.deepEqual(await thread.plan(input), planPlacement(input));
  await thread.close();
});

describe("a thread that plans", () => {
  const thread = new PlannerThread();
  after(() => thread.close());

  it("tells what does not fit from what can not be", async () => {
    const tight: PlannerInput = plannerInput({ loads: [[1, 1, 1]], room: [1, 1] });
    await assert.rejects(thread.plan(tight), PlacementError);
    const wrong = plannerInput({ loads: [[1, Number.NaN]], room: [2] });
    await assert.rejects(thread.plan(wrong), PlannerInputError);
    const plan = await thread.plan(plannerInput({ loads: [[1, 1]], room: [2] }));
    assert.deepEqual(plan.target.get(0), [[{ rank: 0, share: 1 }], [{ rank: 0, share: 1 }]]);
  });

  it("takes no more questions than may wait, and the planner's own all the same", async () => {
    const input = plannerInput({ loads: [[1, 1]], room: [2] });
    const asked = [thread.plan(input, 2), thread.plan(input, 2)];
    await assert.rejects(thread.plan(input, 2), /2 requests wait, the limit is 2/);
    const [first] = await Promise.all([thread.plan(input), ...asked]);
    assert.deepEqual(await thread.plan(input, 2), first);
  });

  it("answers the planner's own questions before those that wait", async () => {
    const input = plannerInput({ loads: [[1, 1]], room: [2] });
    const order: string[] = [];
    const ask = (name: string, limit?: number) =>
      thread.plan(input, limit).then(() => order.push(name));
    await Promise.all([ask("first", 3), ask("second", 3), ask("own")]);
    assert.deepEqual(order, ["first", "own", "second"]);
  });

  it("refuses the one that takes too long, and answers those that wait from a new thread", async (t) => {
    const slow = plannerInput({ loads: [[1, 1, 1]], room: [2, 1] });
    const input = plannerInput({ loads: [[1, 1]], room: [2] });
    t.mock.timers.enable({ apis: ["setTimeout"] });
    const refused = assert.rejects(
      thread.plan(slow),
      /a plan of 1 layer of 3 experts on 2 shards took longer than 60000 ms/,
    );
    const waiting = [thread.plan(input), thread.assess(input, new Map())];
    t.mock.timers.tick(60_000);
    await refused;
    // The time of the next began when its turn came.
    t.mock.timers.tick(59_999);
    const answered = await Promise.all(waiting);
    assert.ok(answered.every(Boolean));
    assert.ok(await thread.plan(slow));
  });
});
