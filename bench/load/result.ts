/** A load run's result: the JSON file with the field names of `vllm bench serve`, and a table for the terminal. */

import { LATENCIES, type LoadSummary, type RequestRecord } from "./statistics.ts";

/** What the run was asked to do, as the result file repeats it. */
export interface RunDescription {
  /** ISO 8601. */
  readonly date: string;
  readonly backend: string;
  readonly modelId: string;
  readonly numPrompts: number;
  /** Absent in a closed loop; written as "inf" then. */
  readonly requestRate?: number;
  readonly burstiness: number;
  /** Absent where there is no limit; written as null then. */
  readonly maxConcurrency?: number;
}

/** The JSON object of `--save-result`, latencies in milliseconds, throughputs per second. */
export function resultJson(
  run: RunDescription,
  summary: LoadSummary,
  records: readonly RequestRecord[],
): Record<string, unknown> {
  const latencies: Record<string, number> = {};
  for (const name of LATENCIES)
    for (const [statistic, value] of Object.entries(summary.latencies[name]))
      latencies[`${statistic}_${name}_ms`] = value;
  return {
    date: run.date,
    backend: run.backend,
    model_id: run.modelId,
    num_prompts: run.numPrompts,
    request_rate: run.requestRate ?? "inf",
    burstiness: run.burstiness,
    max_concurrency: run.maxConcurrency ?? null,
    duration: summary.durationSeconds,
    completed: summary.completed,
    failed: summary.failed,
    failures: summary.failures,
    total_input_tokens: summary.totalInputTokens,
    total_output_tokens: summary.totalOutputTokens,
    total_input: summary.totalInputTokens,
    total_output: summary.totalOutputTokens,
    request_throughput: summary.requestThroughput,
    request_goodput: summary.requestGoodput ?? null,
    output_throughput: summary.outputThroughput,
    total_token_throughput: summary.totalTokenThroughput,
    ...latencies,
    input_lens: records.map((record) => (record.kind === "completed" ? record.promptTokens : 0)),
    output_lens: records.map((record) => (record.kind === "completed" ? record.outputTokens : 0)),
    errors: records.map((record) => (record.kind === "failed" ? record.reason : "")),
  };
}

const TABLE_HEAD = [
  "| | TTFT ms p50 / p95 / p99 | TPOT ms p50 / p95 / p99 | ITL ms p50 / p95 / p99 | E2EL ms p50 / p95 / p99 | output tok/s | req/s | goodput req/s | failed |",
  "|---|---|---|---|---|---|---|---|---|",
];

/** A Markdown table with one row per run. */
export function summaryTable(rows: readonly (readonly [string, LoadSummary])[]): string {
  const lines = rows.map(([name, summary]) => {
    const latencies = LATENCIES.map((latency) => {
      const { p50, p95, p99 } = summary.latencies[latency];
      return [p50, p95, p99].map((value) => value.toFixed(1)).join(" / ");
    });
    const goodput = summary.requestGoodput?.toFixed(2) ?? "–";
    return `| ${[name, ...latencies, summary.outputThroughput.toFixed(1), summary.requestThroughput.toFixed(2), goodput, summary.failed].join(" | ")} |`;
  });
  return [...TABLE_HEAD, ...lines].join("\n");
}

/** Failures of a run by reason, one line each, most frequent first; empty where there is none. */
export function failureLines(summary: LoadSummary): string[] {
  return Object.entries(summary.failures)
    .sort((a, b) => b[1] - a[1])
    .map(([reason, count]) => `failed: ${count} × ${reason}`);
}
