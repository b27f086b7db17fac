/** The router's /metrics page: vLLM's names where its dashboards and schedulers expect them, `moe_*` for what is ours. */

import { createMetrics, type Metrics } from "../../core/platform/metrics.ts";
import { PHASES } from "../../core/statistics/routed-step.ts";
import { meanImbalance } from "../../core/statistics/load.ts";
import type { FlushOutcome, LoadWindow } from "../../core/statistics/store.ts";
import type { DispatchReport } from "../cluster/dispatch/attempts.ts";
import type { ClusterChange } from "../cluster/cluster.ts";
import type { RecoveryObserver } from "../cluster/dispatch/layer-call.ts";
import type { PlannerState } from "../cluster/planning/planner-state.ts";
import type { EngineObserver, StepReport } from "../engine/observer.ts";
import type { PromptReport } from "./serving.ts";
import { recoveryMetrics } from "./recovery-metrics.ts";
import { engineMetrics, type EngineMetricsOptions } from "./engine-metrics.ts";

/** From a loopback hop to the default dispatch timeout and beyond, seconds. */
const DISPATCH_BUCKETS = [
  0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5,
];

/** What the router's metrics are made of. */
export interface RouterMetricsOptions extends EngineMetricsOptions {
  /** Logical experts of a layer. */
  readonly numExperts: number;
  /** What the planner has come to; undefined where there are no shards. Absent: never any. */
  readonly planner?: () => PlannerState | undefined;
}

/** The router's metrics and those who feed them. */
export interface RouterMetrics {
  readonly observer: EngineObserver;
  /** A prompt's completions have all come to their end. */
  onPrompt(report: PromptReport): void;
  onDispatch(report: DispatchReport): void;
  /** What happens to rows where shards fail or are late. */
  readonly recovery: RecoveryObserver;
  onClusterChange(change: ClusterChange): void;
  /** Load of the statistics' last window; one without tokens leaves the gauges as they are. */
  onWindow(window: LoadWindow): void;
  onFlush(outcome: FlushOutcome): void;
  /** Tokens that the statistics did not count. */
  onDropped(tokens: number): void;
  text(): Promise<string>;
}

/** Makes the router's metrics. */
export function createRouterMetrics(options: RouterMetricsOptions): RouterMetrics {
  const metrics = createMetrics();
  const engine = engineMetrics(metrics, options);
  const experts = expertMetrics(metrics, options.numExperts);
  if (options.planner !== undefined) plannerMetrics(metrics, options.planner);
  const recovery = recoveryMetrics(metrics);
  return {
    observer: {
      onStep: (report) => {
        engine.onStep(report);
        experts.onStep(report);
      },
      onToken: engine.onToken,
      onPreemption: engine.onPreemption,
      onRequest: engine.onRequest,
    },
    onPrompt: engine.onPrompt,
    onDispatch: experts.onDispatch,
    recovery,
    onClusterChange: recovery.onClusterChange,
    onWindow: experts.onWindow,
    onFlush: experts.onFlush,
    onDropped: experts.onDropped,
    text: () => metrics.text(),
  };
}

function expertMetrics(metrics: Metrics, numExperts: number) {
  const dispatchSeconds = metrics.histogram(
    "moe_dispatch_seconds",
    "From sending a layer's rows to a shard to its partial sums",
    DISPATCH_BUCKETS,
    ["rank"],
  );
  const bytes = metrics.counter(
    "moe_dispatch_bytes_total",
    "Payload bytes to (sent) and from (received) a shard",
    ["rank", "direction"],
  );
  const rows = metrics.counter("moe_dispatch_rows_total", "Rows dispatched to a shard", ["rank"]);
  const outcomes = metrics.counter("moe_dispatch_outcomes_total", "Dispatches by how they ended", [
    "rank",
    "outcome",
  ]);
  const imbalance = metrics.gauge(
    "moe_load_imbalance",
    "(max - mean) / mean of the tokens per expert, mean over the MoE layers, in the last window with tokens",
    ["phase"],
  );
  const tokens = metrics.counter("moe_tokens_total", "Tokens that went through the model", [
    "phase",
  ]);
  for (const phase of PHASES) tokens.inc({ phase }, 0);
  const flushes = metrics.counter("moe_statistics_flushes_total", "Flushes to Redis by outcome", [
    "outcome",
  ]);
  const dropped = metrics.counter(
    "moe_statistics_dropped_tokens_total",
    "Tokens whose routing was not counted",
  );

  return {
    onStep: ({ sequences }: StepReport) => {
      for (const { phase, numTokens } of sequences) tokens.inc({ phase }, numTokens);
    },
    onDispatch: (report: DispatchReport) => {
      const rank = String(report.rank);
      outcomes.inc({ rank, outcome: report.outcome });
      rows.inc({ rank }, report.rows);
      bytes.inc({ rank, direction: "sent" }, report.bytesOut);
      bytes.inc({ rank, direction: "received" }, report.bytesIn);
      if (report.outcome === "ok") dispatchSeconds.observe({ rank }, report.seconds);
    },
    onWindow: (window: LoadWindow) => {
      for (const phase of PHASES) {
        if (window[phase].every((count) => count === 0)) continue;
        imbalance.set({ phase }, meanImbalance(window[phase], numExperts));
      }
    },
    onFlush: (outcome: FlushOutcome) => flushes.inc({ outcome }),
    onDropped: (count: number) => dropped.inc(count),
  };
}

/** Metrics of the placement and of who plans it, as they are when the page is asked for. */
function plannerMetrics(metrics: Metrics, planner: () => PlannerState | undefined): void {
  const gauge = (name: string, help: string, value: (state: PlannerState) => number | undefined) =>
    metrics.gauge(name, help, [], (one) => {
      const state = planner();
      one.set((state === undefined ? undefined : value(state)) ?? 0);
    });
  gauge("moe_planner_leader", "1 where this router plans placements, else 0", ({ leading }) =>
    Number(leading),
  );
  gauge(
    "moe_redis_away",
    "1 while the Redis that routers share does not answer this router, else 0, also where there is none",
    ({ redisAway }) => Number(redisAway),
  );
  gauge("moe_placement_epoch", "Epoch that this router dispatches by", ({ epoch }) => epoch);
  gauge(
    "moe_predicted_step_seconds",
    "Expected time of a step's MoE layers as this router's last plan left it; 0 where it made none",
    ({ stepSeconds }) => stepSeconds,
  );
  gauge(
    "moe_predicted_imbalance",
    "(max - mean) / mean of the shards' expected seconds in this router's last plan; 0 where it made none",
    ({ imbalance }) => imbalance,
  );
  metrics.gauge(
    "moe_plans",
    "Since the start: placements that this router published, and plans that were not worth their moves (kept)",
    ["outcome"],
    (one) => {
      one.set({ outcome: "published" }, planner()?.published ?? 0);
      one.set({ outcome: "kept" }, planner()?.kept ?? 0);
    },
  );
}
