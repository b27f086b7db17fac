import assert from "node:assert/strict";
import { test } from "node:test";

import { oneTwoFiveBuckets } from "../../../router-service/api/engine-metrics.ts";
import {
  createRouterMetrics,
  type RouterMetricsOptions,
} from "../../../router-service/api/metrics.ts";
import {
  NOTHING_PLANNED,
  type PlannerState,
} from "../../../router-service/cluster/planning/planner-state.ts";
import type { RequestTimeline } from "../../../router-service/engine/observer.ts";

const LABELS = 'model_name="demo",engine="0"';

function routerMetrics(more: Partial<RouterMetricsOptions> = {}) {
  return createRouterMetrics({
    modelName: "demo",
    maxModelLen: 100,
    numExperts: 4,
    state: () => ({ running: 3, waiting: 2, freeBlocks: 25, totalBlocks: 100, preemptions: 1 }),
    ...more,
  });
}

const TIMELINE: RequestTimeline = {
  id: "r1",
  task: "default",
  arrivedAt: 1_000,
  scheduledAt: 1_250,
  firstTokenAt: 2_000,
  lastTokenAt: 4_000,
  finishedAt: 4_000,
  promptTokens: 48,
  lookedUpTokens: 48,
  cachedTokens: 32,
  completionTokens: 5,
  maxTokens: 16,
  outcome: "length",
};

/** Samples of a page by name and labels; fails where a line is not of Prometheus' text format. */
function parsePage(page: string): Map<string, number> {
  const samples = new Map<string, number>();
  const typed = new Set<string>();
  for (const line of page.trimEnd().split("\n")) {
    if (line === "") continue;
    const type = /^# TYPE (\S+) (counter|gauge|histogram|summary)$/.exec(line);
    if (type !== null) typed.add(type[1]);
    if (line.startsWith("#")) {
      assert.match(line, /^# (HELP|TYPE) [a-zA-Z_:][a-zA-Z0-9_:]* ./);
      continue;
    }
    const match =
      /^([a-zA-Z_:][\w:]*)(\{(?:[a-zA-Z_]\w*="[^"\\]*",?)*\})? (NaN|[-+]?Inf|[-+\d.e]+)$/i.exec(
        line,
      );
    assert.ok(match, line);
    const [, name, labels = "", value] = match;
    const family = name.replace(/_(bucket|sum|count)$/, "");
    assert.ok(typed.has(name) || typed.has(family), `${name} has a type`);
    samples.set(name + labels, Number(value));
  }
  return samples;
}

test("vLLM's names are all there before the first request, and the page parses", async () => {
  const samples = parsePage(await routerMetrics().text());
  const plain = [
    ["vllm:num_requests_running", 3],
    ["vllm:num_requests_waiting", 2],
    ["vllm:kv_cache_usage_perc", 0.75],
    ["vllm:num_preemptions_total", 0],
    ["vllm:prompt_tokens_total", 0],
    ["vllm:generation_tokens_total", 0],
    ["vllm:prefix_cache_queries_total", 0],
    ["vllm:prefix_cache_hits_total", 0],
  ] as const;
  for (const [name, value] of plain) assert.equal(samples.get(`${name}{${LABELS}}`), value, name);
  const histograms = [
    "vllm:time_to_first_token_seconds",
    "vllm:inter_token_latency_seconds",
    "vllm:request_time_per_output_token_seconds",
    "vllm:e2e_request_latency_seconds",
    "vllm:request_queue_time_seconds",
    "vllm:request_prefill_time_seconds",
    "vllm:request_decode_time_seconds",
    "vllm:request_inference_time_seconds",
    "vllm:request_prompt_tokens",
    "vllm:request_generation_tokens",
    "vllm:request_params_max_tokens",
    "vllm:request_params_n",
    "vllm:request_max_num_generation_tokens",
    "vllm:iteration_tokens_total",
  ];
  for (const name of histograms) assert.equal(samples.get(`${name}_count{${LABELS}}`), 0, name);
  for (const outcome of ["stop", "length", "abort", "error"]) {
    const key = `vllm:request_success_total{${LABELS},finished_reason="${outcome}"}`;
    assert.equal(samples.get(key), 0);
  }
  const cache = [...samples.keys()].find((key) => key.startsWith("vllm:cache_config_info"));
  assert.match(cache ?? "", /block_size="16".*num_gpu_blocks="100"/);
  assert.ok(samples.has("process_cpu_seconds_total"));
});

test("the planner's gauges are as it is when the page is asked for, and all 0 while there is none", async () => {
  let planner: PlannerState | undefined;
  const metrics = routerMetrics({ planner: () => planner });
  const gauges = async () => {
    const samples = parsePage(await metrics.text());
    const names = ["moe_planner_leader", "moe_redis_away", "moe_placement_epoch"];
    return names.map((name) => samples.get(name));
  };
  assert.deepEqual(await gauges(), [0, 0, 0]);
  planner = { ...NOTHING_PLANNED, epoch: 3, redisAway: true };
  assert.deepEqual(await gauges(), [0, 1, 3]);
});

test("a request's times go where vLLM puts them", async () => {
  const metrics = routerMetrics();
  metrics.observer.onToken?.("r1", undefined);
  for (let i = 0; i < 4; i++) metrics.observer.onToken?.("r1", 500);
  metrics.observer.onPreemption?.("r1");
  metrics.observer.onRequest?.(TIMELINE);
  const samples = parsePage(await metrics.text());
  const sums = [
    ["vllm:time_to_first_token_seconds_sum", 1],
    ["vllm:inter_token_latency_seconds_sum", 2],
    ["vllm:inter_token_latency_seconds_count", 4],
    ["vllm:request_time_per_output_token_seconds_sum", 0.5],
    ["vllm:e2e_request_latency_seconds_sum", 3],
    ["vllm:request_queue_time_seconds_sum", 0.25],
    ["vllm:request_prefill_time_seconds_sum", 0.75],
    ["vllm:request_decode_time_seconds_sum", 2],
    ["vllm:request_inference_time_seconds_sum", 2.75],
    ["vllm:request_prompt_tokens_sum", 48],
    ["vllm:request_generation_tokens_sum", 5],
    ["vllm:request_params_max_tokens_sum", 16],
    ["vllm:generation_tokens_total", 5],
    ["vllm:prompt_tokens_total", 48],
    ["vllm:prefix_cache_queries_total", 48],
    ["vllm:prefix_cache_hits_total", 32],
    ["vllm:num_preemptions_total", 1],
  ] as const;
  for (const [name, value] of sums) assert.equal(samples.get(`${name}{${LABELS}}`), value, name);
  const success = `vllm:request_success_total{${LABELS},finished_reason="length"}`;
  assert.equal(samples.get(success), 1);
});

test("prompts that bypass the prefix cache are no queries of it, and completions count by prompt", async () => {
  const metrics = routerMetrics();
  metrics.observer.onRequest?.({ ...TIMELINE, lookedUpTokens: 0, cachedTokens: 0 });
  metrics.onPrompt({ n: 4, maxCompletionTokens: 7 });
  const samples = parsePage(await metrics.text());
  assert.equal(samples.get(`vllm:prefix_cache_queries_total{${LABELS}}`), 0);
  assert.equal(samples.get(`vllm:request_params_n_sum{${LABELS}}`), 4);
  assert.equal(samples.get(`vllm:request_max_num_generation_tokens_sum{${LABELS}}`), 7);
});

test("a request that never ran counts by its outcome only", async () => {
  const metrics = routerMetrics();
  const { scheduledAt: _s, firstTokenAt: _f, lastTokenAt: _l, ...waited } = TIMELINE;
  metrics.observer.onRequest?.({ ...waited, outcome: "abort", completionTokens: 0 });
  const samples = parsePage(await metrics.text());
  const success = `vllm:request_success_total{${LABELS},finished_reason="abort"}`;
  assert.equal(samples.get(success), 1);
  assert.equal(samples.get(`vllm:prompt_tokens_total{${LABELS}}`), 0);
  assert.equal(samples.get(`vllm:e2e_request_latency_seconds_count{${LABELS}}`), 0);
});

test("dispatches, steps, load and flushes are moe_ metrics with bounded labels", async () => {
  const metrics = routerMetrics();
  const dispatch = { rank: 1, seconds: 0.004, rows: 7, bytesOut: 100, bytesIn: 200 };
  metrics.onDispatch({ ...dispatch, outcome: "ok" });
  metrics.onDispatch({ ...dispatch, outcome: "timeout", bytesIn: 0 });
  const sequence = { requestId: "r1", task: "default" };
  metrics.observer.onStep?.({
    startedAt: 0,
    finishedAt: 1,
    sequences: [
      { ...sequence, phase: "prefill", numTokens: 30 },
      { ...sequence, phase: "decode", numTokens: 1 },
    ],
    numTokens: 31,
    routing: new Map(),
  });
  // Layer 0: mean 2, max 8; layer 1: even.
  const decode = Float64Array.of(8, 0, 0, 0, 2, 2, 2, 2);
  metrics.onWindow({ prefill: new Float64Array(8), decode });
  metrics.onWindow({ prefill: new Float64Array(8), decode: new Float64Array(8) });
  metrics.onFlush("ok");
  metrics.onDropped(5);
  const samples = parsePage(await metrics.text());
  const expected = [
    ['moe_dispatch_seconds_count{rank="1"}', 1],
    ['moe_dispatch_seconds_sum{rank="1"}', 0.004],
    ['moe_dispatch_rows_total{rank="1"}', 14],
    ['moe_dispatch_bytes_total{rank="1",direction="sent"}', 200],
    ['moe_dispatch_bytes_total{rank="1",direction="received"}', 200],
    ['moe_dispatch_outcomes_total{rank="1",outcome="ok"}', 1],
    ['moe_dispatch_outcomes_total{rank="1",outcome="timeout"}', 1],
    ['moe_tokens_total{phase="prefill"}', 30],
    ['moe_tokens_total{phase="decode"}', 1],
    ['moe_load_imbalance{phase="decode"}', 1.5],
    ['moe_statistics_flushes_total{outcome="ok"}', 1],
    ["moe_statistics_dropped_tokens_total", 5],
  ] as const;
  for (const [key, value] of expected) assert.equal(samples.get(key), value, key);
  assert.equal(samples.has('moe_load_imbalance{phase="prefill"}'), false);
});

test("two routers in one process do not share a registry", async () => {
  const [one, other] = [routerMetrics(), routerMetrics()];
  one.observer.onToken?.("r1", undefined);
  const samples = parsePage(await other.text());
  assert.equal(samples.get(`vllm:generation_tokens_total{${LABELS}}`), 0);
});

test("token counts are bounded by 1, 2, 5, 10 … as far as the context goes", () => {
  assert.deepEqual(oneTwoFiveBuckets(100), [1, 2, 5, 10, 20, 50, 100]);
  assert.deepEqual(oneTwoFiveBuckets(1_999), [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000]);
});
