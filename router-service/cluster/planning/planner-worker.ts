/** Plans in a thread of its own; PlannerThread starts it. */

import { parentPort } from "node:worker_threads";

import { planPlacement } from "../../../core/placement/planner.ts";
import { assess } from "./assessment.ts";
import type { PlannerAnswer, PlannerQuestion, WarmUp } from "./planner-thread.ts";
import { warmUpRounds } from "./planner-warm-up.ts";

parentPort?.on("message", (question: PlannerQuestion | WarmUp) => {
  if (question.kind === "warm-up") {
    warmUp(warmUpRounds());
    return;
  }
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

/** One round, and the next when what was asked meanwhile is answered. */
function warmUp(rounds: Generator<void>): void {
  if (rounds.next().done !== true) setImmediate(warmUp, rounds);
}
