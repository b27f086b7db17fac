/** Plans in a thread of its own; PlannerThread starts it. */

import { parentPort } from "node:worker_threads";

import { planPlacement } from "../../../core/placement/planner.ts";
import { assess } from "./assessment.ts";
import type { PlannerAnswer, PlannerQuestion } from "./planner-thread.ts";

parentPort?.on("message", (question: PlannerQuestion) => {
  let answer: PlannerAnswer;
  try {
    const { input } = question;
    const result = question.kind === "plan" ? planPlacement(input) : assess(input, question.placed);
    answer = { result };
  } catch (error) {
    const { name, message } = error as Error;
    answer = { kind: name, message };
  }
  parentPort?.postMessage(answer, []);
});
