import assert from "node:assert/strict";
import { test } from "node:test";

import {
  distribution,
  keepsServiceLevels,
  median,
  percentile,
  summarize,
  timePerOutputToken,
  type CompletedRequest,
} from "../../../bench/load/statistics.ts";

const request: CompletedRequest = {
  kind: "completed",
  promptTokens: 10,
  outputTokens: 5,
  ttftMs: 100,
  itlMs: [20, 30, 20, 30],
  e2elMs: 200,
};

test("percentiles interpolate linearly, as numpy's do", () => {
  const values = [1, 2, 3, 4, 10];
  assert.equal(percentile(values, 0.5), 3);
  assert.ok(Math.abs(percentile(values, 0.95) - 8.8) < 1e-12);
  assert.ok(Math.abs(percentile(values, 0.99) - 9.76) < 1e-12);
  assert.equal(percentile(values, 1), 10);
  assert.equal(percentile([7], 0.99), 7);
  assert.equal(percentile([], 0.5), 0);
  assert.throws(() => median([]), /nothing was measured/);
});

test("a distribution sorts its values by size and takes the population's deviation", () => {
  const { mean, median, std, p50 } = distribution([10, 9, 2, 11]);
  assert.deepEqual({ mean, median, p50 }, { mean: 8, median: 9.5, p50: 9.5 });
  assert.ok(Math.abs(std - Math.sqrt(12.5)) < 1e-12);
});

test("time per output token leaves the first token out", () => {
  assert.equal(timePerOutputToken(request), 25);
  assert.equal(timePerOutputToken({ ...request, outputTokens: 1, e2elMs: 100 }), undefined);
});

test("a request is good only within every limit that was asked for", () => {
  assert.ok(keepsServiceLevels(request, {}));
  assert.ok(keepsServiceLevels(request, { ttft: 100, tpot: 25, e2el: 200 }));
  assert.ok(!keepsServiceLevels(request, { ttft: 99 }));
  assert.ok(!keepsServiceLevels(request, { tpot: 24.9 }));
  assert.ok(!keepsServiceLevels(request, { ttft: 100, e2el: 199 }));
});

test("throughput counts completed requests, failures are counted by their reason", () => {
  const slow = { ...request, ttftMs: 400, e2elMs: 500, outputTokens: 3, itlMs: [50, 50] };
  const summary = summarize(
    [
      request,
      { kind: "failed", reason: "HTTP 429" },
      slow,
      { kind: "failed", reason: "HTTP 429" },
      { kind: "failed", reason: "ECONNRESET" },
    ],
    4,
    { ttft: 150 },
  );
  assert.equal(summary.completed, 2);
  assert.equal(summary.failed, 3);
  assert.deepEqual(summary.failures, { "HTTP 429": 2, ECONNRESET: 1 });
  assert.equal(summary.requestThroughput, 0.5);
  assert.equal(summary.requestGoodput, 0.25);
  assert.equal(summary.totalInputTokens, 20);
  assert.equal(summary.outputThroughput, 2);
  assert.equal(summary.totalTokenThroughput, 7);
  assert.equal(summary.latencies.ttft.mean, 250);
  assert.equal(summary.latencies.tpot.mean, 37.5);
  assert.equal(summary.latencies.itl.mean, 200 / 6);
  assert.equal(summary.latencies.e2el.median, 350);
});

test("a run without service levels has no goodput, a run without answers has zeros", () => {
  const summary = summarize([], 0);
  assert.equal(summary.requestGoodput, undefined);
  assert.equal(summary.outputThroughput, 0);
  assert.equal(summary.latencies.ttft.p99, 0);
});
