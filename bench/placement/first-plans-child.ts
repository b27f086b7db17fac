/** The first plans of a process, timed in one that is new: for bench/placement/first-plans.ts. */

import { setTimeout } from "node:timers/promises";
import { Worker } from "node:worker_threads";

import { planPlacement, type Plan, type PlannerInput } from "../../core/placement/planner.ts";
import type {
  PlannerAnswer,
  PlannerQuestion,
  WarmUp,
} from "../../router-service/cluster/planning/planner-thread.ts";
import { asRoutersSend, driftedLoad, inputOf, USUAL, withAllKnown } from "./timed-clusters.ts";

/** What the process is told, as JSON. */
export interface FirstPlansTask {
  /** The process's own thread, or the planner's thread of a router that has been up for a while. */
  readonly where: "process" | "router";
  /** Whether all that a router knows is given, or loads alone. */
  readonly allKnown: boolean;
}

/** Milliseconds of one plan. */
export interface PlanTime {
  /** CPU time of the thread that plans. */
  readonly thread: number;
  /** From the question to the answer, on the clock. */
  readonly wall: number;
}

/** What it answers, as JSON. */
export interface FirstPlans {
  readonly plan: PlanTime;
  readonly replan: PlanTime;
}

/** A thread that has used no more than so much CPU time in a while is done with what it had to do, milliseconds. */
const IDLE_MS = 1;
const WHILE_MS = 200;
const LONGEST_WAIT_MS = 20_000;

/** Who plans. */
interface Planner {
  plan(input: PlannerInput): Promise<Plan>;
  /** CPU time of its thread so far, milliseconds. */
  spent(): Promise<number>;
}

const task = JSON.parse(process.argv[2]) as FirstPlansTask;
const bare = inputOf(USUAL);
const input = task.allKnown ? withAllKnown(bare) : bare;
const drifted = { ...input, load: driftedLoad(bare) };
const planner = task.where === "process" ? ownThread() : await routersThread();
const [{ target }, plan] = await timed(asRoutersSend(input));
const current = { epoch: 1, layers: target };
const [, replan] = await timed(asRoutersSend({ ...drifted, current }));
process.stdout.write(`${JSON.stringify({ plan, replan } satisfies FirstPlans)}\n`);
process.exit(0);

async function timed(asked: PlannerInput): Promise<[Plan, PlanTime]> {
  const before = await planner.spent();
  const start = performance.now();
  const found = await planner.plan(asked);
  const wall = performance.now() - start;
  return [found, { thread: (await planner.spent()) - before, wall }];
}

function ownThread(): Planner {
  return {
    plan: (asked) => Promise.resolve(planPlacement(asked)),
    spent: () => Promise.resolve(milliseconds(process.threadCpuUsage())),
  };
}

/** As PlannerThread starts it; answers when it has nothing more to do. */
async function routersThread(): Promise<Planner> {
  const file = "../../router-service/cluster/planning/planner-worker.ts";
  const worker = new Worker(new URL(file, import.meta.url), { execArgv: [] });
  worker.postMessage({ kind: "warm-up" } satisfies WarmUp, []);
  const plan = (asked: PlannerInput) => {
    const { promise, resolve, reject } = Promise.withResolvers<Plan>();
    worker.once("error", reject);
    worker.once("message", (answer: PlannerAnswer) => {
      worker.off("error", reject);
      if ("result" in answer) resolve(answer.result as Plan);
      else reject(new Error(answer.message));
    });
    worker.postMessage({ kind: "plan", input: asked } satisfies PlannerQuestion, []);
    return promise;
  };
  const spent = async () => milliseconds(await worker.cpuUsage());
  // It answers when it has loaded its code; what it does after that is to warm up.
  await plan(inputOf({ numLayers: 1, numExperts: 1, numShards: 1, topK: 1, redundancy: 0 }));
  const end = performance.now() + LONGEST_WAIT_MS;
  let last = -Infinity;
  for (let now = await spent(); now - last > IDLE_MS; now = await spent()) {
    if (performance.now() > end) throw new Error(`the thread works for ${LONGEST_WAIT_MS} ms`);
    last = now;
    await setTimeout(WHILE_MS);
  }
  return { plan, spent };
}

function milliseconds({ user, system }: NodeJS.CpuUsage): number {
  return (user + system) / 1000;
}
