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

/** What would be done, or why not, what it would bring, and what each shard would hold. */
export function formatPlan(plan: PlanView): string {
  const { why, moves, predicted_step_seconds_before: before } = plan;
  const after = secondsText(plan.predicted_step_seconds);
  const steps = `${before === null ? "not all have a copy" : secondsText(before)} → ${after}`;
  const found = plan.worth_it
    ? [
        "this would be done:",
        `  ${why}`,
        `experts of a step: ${steps}`,
        `moves: ${movesText(moves)}`,
      ]
    : [
        "nothing would be done:",
        `  ${why}`,
        moves.stages === 0
          ? `experts of a step: ${after}`
          : `that placement: experts of a step ${steps}; moves: ${movesText(moves)}`,
      ];
  return [...found, "", ...shardTable(plan.shards), ""].join("\n");
}

function movesText({ loads, drops, bytes, stages }: PlanView["moves"]): string {
  if (loads + drops === 0) return "none, only shares change";
  const loaded =
    loads === 0 ? "nothing is loaded" : `${countText(loads, "load")} (${bytesText(bytes)})`;
  return `${loaded}, ${countText(drops, "drop")}, in ${countText(stages, "stage")}`;
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
