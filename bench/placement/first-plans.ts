/** How long the first plan and the first re-plan of a process take, in many processes that are new. */

import { execFileSync } from "node:child_process";
import { join } from "node:path";

import { SERVICE_NODE_FLAGS } from "../../core/platform/lifecycle.ts";
import type { FirstPlans, FirstPlansTask, PlanTime } from "./first-plans-child.ts";

const CHILD = join(import.meta.dirname, "first-plans-child.ts");
const PROCESSES = 9;
const LONGEST_MS = 60_000;

const ROWS: readonly (FirstPlansTask & { readonly name: string })[] = [
  { name: "a process's own, loads alone", where: "process", allKnown: false },
  { name: "the same, all that a router knows", where: "process", allKnown: true },
  { name: "a router's for plans, loads alone", where: "router", allKnown: false },
  { name: "the same, all that a router knows", where: "router", allKnown: true },
];

/** First plans of 48 × 128 × 16 as Markdown: median and most of all processes, CPU time of the thread and time on the clock. */
export function firstPlansTable(): string {
  const found: FirstPlans[][] = ROWS.map(() => []);
  // In turns: what else the machine does meets all of them.
  for (let i = 0; i < PROCESSES; i++) {
    for (const [row, { where, allKnown }] of ROWS.entries()) {
      found[row].push(firstPlans({ where, allKnown }));
    }
  }
  const rows = ROWS.map(({ name }, row) => {
    const columns = (["plan", "replan"] as const).flatMap((kind) =>
      (["thread", "wall"] as const).map((of) =>
        spread(
          found[row].map((one) => one[kind]),
          of,
        ),
      ),
    );
    return `| ${[name, ...columns].join(" | ")} |`;
  });
  return [
    `| thread (${PROCESSES} processes) | first plan ms: thread | wall | first re-plan: thread | wall |`,
    `| --- ${"| ---: ".repeat(4)}|`,
    ...rows,
  ].join("\n");
}

function firstPlans(task: FirstPlansTask): FirstPlans {
  const args = [...SERVICE_NODE_FLAGS, CHILD, JSON.stringify(task)];
  const answer = execFileSync(process.execPath, args, { encoding: "utf8", timeout: LONGEST_MS });
  return JSON.parse(answer) as FirstPlans;
}

function spread(times: readonly PlanTime[], of: keyof PlanTime): string {
  const sorted = times.map((one) => one[of]).sort((a, b) => a - b);
  return `${sorted[(sorted.length - 1) >> 1].toFixed(0)} (${sorted.at(-1)!.toFixed(0)})`;
}
