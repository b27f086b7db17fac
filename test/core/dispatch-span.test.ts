import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";

import { ROOT_CONTEXT, SpanStatusCode, trace } from "@opentelemetry/api";
import { tracing } from "@opentelemetry/sdk-node";

import type { Cluster } from "../../router-service/cluster/cluster.ts";
import { testValues } from "../../bench/rig/expert-reference.ts";
import { createGate } from "../support/gated-device.ts";
import { hostStep, testRouting } from "../support/run-experts-contract.ts";
import { connectTestCluster, startTestShard, type TestShard } from "../support/shards.ts";
import { waitFor } from "../../bench/rig/wait-for.ts";

describe("the trace of a step", () => {
  const exporter = new tracing.InMemorySpanExporter();
  const provider = new tracing.BasicTracerProvider({
    spanProcessors: [new tracing.SimpleSpanProcessor(exporter)],
  });
  const gate = createGate();
  let shards: TestShard[];
  let cluster: Cluster;
  const routing = testRouting(3, 4, (token, k) => (token + k * 3) % 12);
  const run = (sampled: boolean) => {
    const root = provider.getTracer("test").startSpan("step");
    const context = trace.setSpan(ROOT_CONTEXT, root);
    const { signal } = new AbortController();
    const rows = testValues(3 * 64, 1);
    const step = hostStep(rows, routing, signal, sampled ? context : undefined);
    const sums = Promise.resolve(cluster.runExperts(1, step.hiddenStates, step.routing));
    return { root, sums };
  };
  const spans = (name: string) => exporter.getFinishedSpans().filter((span) => span.name === name);

  before(async () => {
    trace.setGlobalTracerProvider(provider);
    gate.open();
    shards = [
      await startTestShard({ rank: 0, wrapDevice: gate.wrap }),
      await startTestShard({ rank: 1 }),
    ];
    cluster = await connectTestCluster(shards.map(({ address }) => address));
    await cluster.ready();
  });
  after(async () => {
    await cluster.close();
    await Promise.all(shards.map((shard) => shard.close()));
    await provider.shutdown();
    trace.disable();
  });

  it("has a dispatch per shard under the step, and the shard's own span under each", async () => {
    const { root, sums } = run(true);
    await sums;
    const dispatches = spans("moe.dispatch");
    assert.deepEqual(
      new Set(dispatches.map((span) => span.attributes["moe.shard.rank"])),
      new Set([0, 1]),
    );
    for (const dispatch of dispatches) {
      assert.equal(dispatch.parentSpanContext?.spanId, root.spanContext().spanId);
      const rank = dispatch.attributes["moe.shard.rank"];
      assert.deepEqual(dispatch.attributes, {
        "moe.layer": 1,
        "moe.shard.rank": rank,
        "moe.rows": 3,
        "moe.placement.epoch": 1,
        "moe.dispatch.bytes": 3 * (64 * 4 + 4 * 2 + 4 * 4) + 3 * 64 * 4,
      });
      const children = spans("moe.experts").filter(
        ({ parentSpanContext }) => parentSpanContext?.spanId === dispatch.spanContext().spanId,
      );
      assert.equal(children.length, 1);
      const [{ attributes }] = children;
      assert.equal(children[0].spanContext().traceId, root.spanContext().traceId);
      assert.equal(attributes["moe.shard.rank"], rank);
      assert.equal(attributes["moe.layer"], 1);
      assert.ok(Number(attributes["moe.compute.seconds"]) > 0);
    }
  });

  it("has nothing where the step is not sampled", async () => {
    exporter.reset();
    await run(false).sums;
    assert.deepEqual(exporter.getFinishedSpans(), []);
  });

  it("shows a dispatch that failed, on both sides", async () => {
    exporter.reset();
    gate.failWith(new Error("worn out"));
    await assert.rejects(run(true).sums, /worn out/);
    const failed = (name: string) =>
      spans(name).some(
        ({ status }) =>
          status.code === SpanStatusCode.ERROR && /worn out/.test(status.message ?? ""),
      );
    await waitFor("both spans", () => failed("moe.dispatch") && failed("moe.experts"));
    gate.failWith(undefined);
  });
});
