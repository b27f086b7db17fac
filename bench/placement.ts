/** `npm run bench -- placement`: how evenly the planner shares recorded routing out, how fast it plans, what moves and rows it saves. */

import { z } from "zod";

import { loadConfig } from "../core/platform/config.ts";
import { firstPlansTable } from "./placement/first-plans.ts";
import { imbalanceRows, imbalanceTable } from "./placement/imbalance.ts";
import { rowsTable } from "./placement/rows.ts";
import { speedTable } from "./placement/speed.ts";

const PARTS = ["imbalance", "speed", "rows"] as const;

const schema = z.object({
  part: z
    .enum([...PARTS, "all"])
    .default("all")
    .meta({
      description: "What to measure",
      placeholder: PARTS.join("|"),
    }),
});

const about = {
  command: "npm run bench -- placement",
  summary: "Prints what placements are worth on the recorded routing, as Markdown.",
};

/** Runs the benchmark; answers the exit code. */
export function runPlacementCommand(argv: string[]): number {
  const { part } = loadConfig(schema, about, argv);
  if (part === "all" || part === "imbalance") {
    console.log(`${imbalanceTable([...imbalanceRows()])}\n`);
  }
  if (part === "all" || part === "speed") {
    console.log(`${firstPlansTable()}\n`);
    console.log(`${speedTable()}\n`);
  }
  if (part === "all" || part === "rows") console.log(`${rowsTable()}\n`);
  return 0;
}
