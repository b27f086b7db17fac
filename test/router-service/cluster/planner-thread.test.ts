import assert from "node:assert/strict";
import { after, describe, it } from "node:test";

import {
  PlacementError,
  PlannerInputError,
  type PlannerInput,
} from "../../../core/placement/planner.ts";
import { PlannerThread } from "../../../router-service/cluster/planner-thread.ts";
import { plannerInput } from "../../core/placement/inputs.ts";

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
});
