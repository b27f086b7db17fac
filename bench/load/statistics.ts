/** What a load run measured, from the records of its requests: latencies, throughput, goodput. Pure. */

/** A request that was answered in full. Times are milliseconds. */
export interface CompletedRequest {
  readonly kind: "completed";
  readonly promptTokens: number;
  readonly outputTokens: number;
  /** From sending the request to its first token. */
  readonly ttftMs: number;
  /** Gaps between successive chunks that carry tokens; one fewer than there were such chunks. */
  readonly itlMs: readonly number[];
  /** From sending the request to its last token. */
  readonly e2elMs: number;
}

/** A request that was not. */
export interface FailedRequest {
  readonly kind: "failed";
  /** Why, in words that group: the HTTP status with the server's error code, or what the connection did. */
  readonly reason: string;
}

/** How one request went. */
export type RequestRecord = CompletedRequest | FailedRequest;

/** Limits in milliseconds that a request must keep to count as good; absent ones are not asked for. */
export interface ServiceLevels {
  readonly ttft?: number;
  readonly tpot?: number;
  readonly e2el?: number;
}

/** Moments and percentiles of one latency over a run; all 0 where nothing was measured. */
export interface Distribution {
  readonly mean: number;
  readonly median: number;
  readonly std: number;
  readonly p50: number;
  readonly p95: number;
  readonly p99: number;
}

/** The latencies of a run, under the names of `vllm bench serve`. */
export const LATENCIES = ["ttft", "tpot", "itl", "e2el"] as const;
/** One of the LATENCIES. */
export type Latency = (typeof LATENCIES)[number];

/** What a load run measured. */
export interface LoadSummary {
  readonly durationSeconds: number;
  readonly completed: number;
  readonly failed: number;
  /** Failed requests by reason. */
  readonly failures: Readonly<Record<string, number>>;
  readonly totalInputTokens: number;
  readonly totalOutputTokens: number;
  /** Completed requests per second. */
  readonly requestThroughput: number;
  /** Completed requests per second that kept every service level; undefined where none was asked for. */
  readonly requestGoodput: number | undefined;
  /** Output tokens per second. */
  readonly outputThroughput: number;
  /** Input and output tokens per second. */
  readonly totalTokenThroughput: number;
  readonly latencies: Readonly<Record<Latency, Distribution>>;
}

/** Value below which the fraction `q` of the sorted values lies, interpolated linearly between neighbours as numpy does. */
export function percentile(sorted: readonly number[], q: number): number {
  if (sorted.length === 0) return 0;
  const position = (sorted.length - 1) * q;
  const below = Math.floor(position);
  const above = Math.min(below + 1, sorted.length - 1);
  return sorted[below] + (sorted[above] - sorted[below]) * (position - below);
}

/** Median of the values; throws where there is none. */
export function median(values: readonly number[]): number {
  if (values.length === 0) throw new Error("nothing was measured");
  return percentile(
    values.toSorted((a, b) => a - b),
    0.5,
  );
}

/** Mean, median, population standard deviation and percentiles of the values. */
export function distribution(values: readonly number[]): Distribution {
  if (values.length === 0) return { mean: 0, median: 0, std: 0, p50: 0, p95: 0, p99: 0 };
  const sorted = [...values].sort((a, b) => a - b);
  const mean = sorted.reduce((sum, value) => sum + value, 0) / sorted.length;
  const variance = sorted.reduce((sum, value) => sum + (value - mean) ** 2, 0) / sorted.length;
  const p50 = percentile(sorted, 0.5);
  return {
    mean,
    median: p50,
    std: Math.sqrt(variance),
    p50,
    p95: percentile(sorted, 0.95),
    p99: percentile(sorted, 0.99),
  };
}

/** Milliseconds per output token after the first; undefined for requests of one token, which have none. */
export function timePerOutputToken(request: CompletedRequest): number | undefined {
  if (request.outputTokens < 2) return undefined;
  return (request.e2elMs - request.ttftMs) / (request.outputTokens - 1);
}

/** Whether the request kept every service level that was asked for; a request without a TPOT can not miss one. */
export function keepsServiceLevels(request: CompletedRequest, levels: ServiceLevels): boolean {
  return (
    request.ttftMs <= (levels.ttft ?? Infinity) &&
    (timePerOutputToken(request) ?? 0) <= (levels.tpot ?? Infinity) &&
    request.e2elMs <= (levels.e2el ?? Infinity)
  );
}

/** Sums up a run of `durationSeconds`, first request sent to last request ended. Latencies are those of completed requests. */
export function summarize(
  records: readonly RequestRecord[],
  durationSeconds: number,
  levels?: ServiceLevels,
): LoadSummary {
  const completed = records.filter((record) => record.kind === "completed");
  const failures: Record<string, number> = {};
  for (const record of records)
    if (record.kind === "failed") failures[record.reason] = (failures[record.reason] ?? 0) + 1;
  const totalInputTokens = completed.reduce((sum, request) => sum + request.promptTokens, 0);
  const totalOutputTokens = completed.reduce((sum, request) => sum + request.outputTokens, 0);
  const perSecond = (count: number) => (durationSeconds > 0 ? count / durationSeconds : 0);
  return {
    durationSeconds,
    completed: completed.length,
    failed: records.length - completed.length,
    failures,
    totalInputTokens,
    totalOutputTokens,
    requestThroughput: perSecond(completed.length),
    requestGoodput:
      levels && perSecond(completed.filter((r) => keepsServiceLevels(r, levels)).length),
    outputThroughput: perSecond(totalOutputTokens),
    totalTokenThroughput: perSecond(totalInputTokens + totalOutputTokens),
    latencies: {
      ttft: distribution(completed.map((request) => request.ttftMs)),
      tpot: distribution(completed.map(timePerOutputToken).filter((value) => value !== undefined)),
      itl: distribution(completed.flatMap((request) => request.itlMs)),
      e2el: distribution(completed.map((request) => request.e2elMs)),
    },
  };
}
