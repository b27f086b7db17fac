/** Plans and replays as text for a terminal. Pure. */

import { bytesText, countText, secondsText } from "../core/amounts.ts";
import { type ShardBalanceView, shardTable } from "./placement-report.ts";
import type { ReplayReport } from "./replay-command.ts";

/** Answer of POST /v1/placement/plan, as far as it is shown. */
export interface PlanView {
  readonly worth_it: boolean;
  readonly why: string;
  readonly predicted_step_seconds_before: number | null;
  readonly predicted_step_seconds: number;
  readonly moves: {
    readonly loads: number;
    readonly drops: number;
    readonly bytes: number;
    readonly stages: number;
  };
  readonly shards: readonly ShardBalanceView[];
}

/** What would be done, what it would bring, and what each shard would hold. */
export function formatPlan(plan: PlanView): string {
  const { moves, predicted_step_seconds_before: before, predicted_step_seconds: after } = plan;
  return [
    plan.worth_it ? "this would be done:" : "nothing would be done:",
    `  ${plan.why}`,
    `experts of a step: ${before === null ? "not all have a copy" : secondsText(before)} → ${secondsText(after)}`,
    `moves: ${countText(moves.loads, "load")} of ${bytesText(moves.bytes)}, ${countText(moves.drops, "drop")}, in ${countText(moves.stages, "stage")}`,
    "",
    ...shardTable(plan.shards),
    "",
  ].join("\n");
}

/** A line for each policy. */
export function formatReplay({
  model,
  tokens,
  windowTokens,
  stepTokens,
  shards,
  attentionSeconds,
  attentionFrom,
  results,
}: ReplayReport): string {
  const header = ["", "TPOT", "p99", "MoE layers", "imbalance", "rows per token", "moved"];
  const rows = results.map((result) => [
    result.policy,
    secondsText(result.meanTpotSeconds),
    secondsText(result.p99TpotSeconds),
    secondsText(result.meanSeconds),
    result.imbalance.toFixed(3),
    result.rowsPerToken.toFixed(2),
    bytesText(result.movedBytes),
  ]);
  const all = [header, ...rows];
  const widths = header.map((_, column) => Math.max(...all.map((cells) => cells[column].length)));
  const missing = results.some(({ policy }) => policy === "eplb")
    ? []
    : ["EPLB has no room: it gives every shard as many slots as the smallest one has."];
  return [
    `${model}: ${tokens} tokens on ${countText(shards, "shard")}, a plan every ${windowTokens} tokens, steps of ${stepTokens}`,
    "",
    ...all.map((cells) =>
      cells
        .map((cell, column) =>
          column === 0 ? cell.padEnd(widths[0]) : cell.padStart(widths[column]),
        )
        .join("  "),
    ),
    ...missing,
    {
      given: `TPOT with the ${secondsText(attentionSeconds)} of --attention-ms.`,
      recorded: `TPOT with ${secondsText(attentionSeconds)} beside a step's MoE layers, as recorded.`,
      unknown: "TPOT without attention: --attention-ms says what it takes.",
    }[attentionFrom],
    "",
  ].join("\n");
}
