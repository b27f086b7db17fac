/** Plans in a thread of its own; PlannerThread starts it. */

import { parentPort } from "node:worker_threads";

import { planPlacement } from "../../core/placement/planner.ts";
import { assess } from "./assessment.ts";
import type { PlannerAnswer, PlannerQuestion } from "./planner-thread.ts";

parentPort?.on("message", ({ id, ask }: PlannerQuestion) => {
  let answer: PlannerAnswer;
  try {
    const result = ask.kind === "plan" ? planPlacement(ask.input) : assess(ask.input, ask.placed);
    answer = { id, result };
  } catch (error) {
    const { name, message } = error as Error;
    answer = { id, kind: name, message };
  }
  parentPort?.postMessage(answer, []);
});
