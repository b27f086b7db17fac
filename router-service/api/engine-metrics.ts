/** vLLM's metrics, by its names, labels and buckets, so that its dashboards and the schedulers made for it work here. */

import type { Metrics } from "../../core/platform/metrics.ts";
import { BLOCK_SIZE } from "../engine/model-runner.ts";
import type { RequestTimeline, StepReport } from "../engine/observer.ts";
import type { EngineState } from "../engine/request.ts";
import type { PromptReport } from "./serving.ts";

/** vLLM's bucket bounds, seconds. */
const TTFT_BUCKETS = [
  0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80,
  160, 640, 2560,
];
const TPOT_BUCKETS = [
  0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80,
];
const REQUEST_BUCKETS = [
  0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680,
];
const N_BUCKETS = [1, 2, 5, 10, 20];
const STEP_TOKENS_BUCKETS = [1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384];

/** What the engine's metrics are made of. */
export interface EngineMetricsOptions {
  /** Value of the label model_name. */
  readonly modelName: string;
  /** Longest prompt and completion together, tokens: the largest bucket of token counts. */
  readonly maxModelLen: number;
  /** Asked whenever the page is, never before. */
  readonly state: () => EngineState;
}

/** 1, 2, 5, 10, 20, … up to `max`, as vLLM bounds token counts. */
export function oneTwoFiveBuckets(max: number): number[] {
  const buckets: number[] = [];
  for (let power = 1; ; power *= 10) {
    for (const mantissa of [1, 2, 5]) {
      if (mantissa * power > max) return buckets;
      buckets.push(mantissa * power);
    }
  }
}

/** Registers vLLM's metrics and answers the observer that feeds them. */
export function engineMetrics(
  metrics: Metrics,
  { modelName, maxModelLen, state }: EngineMetricsOptions,
) {
  const labelNames = ["model_name", "engine"];
  const labels = { model_name: modelName, engine: "0" };
  const gauge = (name: string, help: string, value: (state: EngineState) => number) =>
    metrics.gauge(name, help, labelNames, (one) => one.set(labels, value(state())));
  const counter = (name: string, help: string) => {
    const child = metrics.counter(name, help, labelNames).labels(labels);
    child.inc(0);
    return child;
  };
  const histogram = (name: string, help: string, buckets: readonly number[]) => {
    const parent = metrics.histogram(name, help, buckets, labelNames);
    parent.zero(labels);
    return parent.labels(labels);
  };
  const tokenBuckets = oneTwoFiveBuckets(maxModelLen);

  gauge("vllm:num_requests_running", "Requests in the running batch", ({ running }) => running);
  gauge("vllm:num_requests_waiting", "Requests in the queue", ({ waiting }) => waiting);
  gauge(
    "vllm:kv_cache_usage_perc",
    "Share of KV blocks in use, 0 to 1",
    ({ freeBlocks, totalBlocks }) => (totalBlocks === 0 ? 0 : 1 - freeBlocks / totalBlocks),
  );
  const cacheLabels = ["block_size", "num_gpu_blocks", "enable_prefix_caching"];
  metrics.gauge(
    "vllm:cache_config_info",
    "Configuration of the KV cache",
    [...labelNames, ...cacheLabels],
    (one) => {
      const { totalBlocks } = state();
      const config = { block_size: String(BLOCK_SIZE), enable_prefix_caching: "True" };
      one.set({ ...labels, ...config, num_gpu_blocks: String(totalBlocks) }, 1);
    },
  );

  const preemptions = counter("vllm:num_preemptions_total", "Requests preempted by the engine");
  const promptTokens = counter(
    "vllm:prompt_tokens_total",
    "Prompt tokens of requests whose prefill was done",
  );
  const generationTokens = counter("vllm:generation_tokens_total", "Tokens generated");
  const queries = counter(
    "vllm:prefix_cache_queries_total",
    "Prompt tokens looked up in the prefix cache",
  );
  const hits = counter("vllm:prefix_cache_hits_total", "Prompt tokens found in the prefix cache");
  const success = metrics.counter("vllm:request_success_total", "Requests by how they finished", [
    ...labelNames,
    "finished_reason",
  ]);
  for (const outcome of ["stop", "length", "abort", "error"]) {
    success.inc({ ...labels, finished_reason: outcome }, 0);
  }

  const ttft = histogram(
    "vllm:time_to_first_token_seconds",
    "From a request's arrival to its first token",
    TTFT_BUCKETS,
  );
  const itl = histogram(
    "vllm:inter_token_latency_seconds",
    "Gap between two tokens of a request",
    TPOT_BUCKETS,
  );
  const tpot = histogram(
    "vllm:request_time_per_output_token_seconds",
    "A request's mean time per token after its first",
    TPOT_BUCKETS,
  );
  const phase = (name: string, help: string) =>
    histogram(`vllm:${name}_seconds`, help, REQUEST_BUCKETS);
  const endToEnd = phase("e2e_request_latency", "From a request's arrival to its end");
  const queued = phase("request_queue_time", "From a request's arrival to its first step");
  const prefill = phase("request_prefill_time", "From a request's first step to its first token");
  const decode = phase("request_decode_time", "From a request's first token to its last");
  const inference = phase(
    "request_inference_time",
    "From a request's first step to its last token",
  );
  const numPrompt = histogram(
    "vllm:request_prompt_tokens",
    "Prompt tokens of a request",
    tokenBuckets,
  );
  const numGenerated = histogram(
    "vllm:request_generation_tokens",
    "Tokens generated for a request",
    tokenBuckets,
  );
  const maxTokens = histogram(
    "vllm:request_params_max_tokens",
    "max_tokens asked for",
    tokenBuckets,
  );
  const numCompletions = histogram("vllm:request_params_n", "n asked for", N_BUCKETS);
  const mostGenerated = histogram(
    "vllm:request_max_num_generation_tokens",
    "Tokens generated for the longest completion of a prompt",
    tokenBuckets,
  );
  const stepTokens = histogram(
    "vllm:iteration_tokens_total",
    "Tokens of an engine step",
    STEP_TOKENS_BUCKETS,
  );

  function onRequest(timeline: RequestTimeline): void {
    const { arrivedAt, scheduledAt, firstTokenAt, lastTokenAt, finishedAt, outcome } = timeline;
    success.inc({ ...labels, finished_reason: outcome });
    if (scheduledAt !== undefined) {
      queries.inc(timeline.lookedUpTokens);
      hits.inc(timeline.cachedTokens);
      queued.observe(seconds(arrivedAt, scheduledAt));
    }
    const ended = outcome === "stop" || outcome === "length";
    if (firstTokenAt !== undefined) ttft.observe(seconds(arrivedAt, firstTokenAt));
    if (firstTokenAt !== undefined || ended) promptTokens.inc(timeline.promptTokens);
    // As in vLLM, the rest is of requests that came to their end.
    if (!ended || scheduledAt === undefined) return;
    const firstAt = firstTokenAt ?? finishedAt;
    const lastAt = lastTokenAt ?? firstAt;
    endToEnd.observe(seconds(arrivedAt, finishedAt));
    prefill.observe(seconds(scheduledAt, firstAt));
    decode.observe(seconds(firstAt, lastAt));
    inference.observe(seconds(scheduledAt, lastAt));
    if (timeline.completionTokens > 1) {
      tpot.observe(seconds(firstAt, lastAt) / (timeline.completionTokens - 1));
    }
    numPrompt.observe(timeline.promptTokens);
    numGenerated.observe(timeline.completionTokens);
    maxTokens.observe(timeline.maxTokens);
  }

  return {
    onStep: ({ numTokens }: StepReport) => stepTokens.observe(numTokens),
    onToken: (_requestId: string, gapMs: number | undefined) => {
      generationTokens.inc();
      if (gapMs !== undefined) itl.observe(gapMs / 1000);
    },
    onPreemption: () => preemptions.inc(),
    onRequest,
    onPrompt: ({ n, maxCompletionTokens }: PromptReport) => {
      numCompletions.observe(n);
      mostGenerated.observe(maxCompletionTokens);
    },
  };
}

function seconds(from: number, to: number): number {
  return Math.max(0, to - from) / 1000;
}
