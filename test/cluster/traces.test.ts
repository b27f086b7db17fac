import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";

import { greedyBody } from "../../bench/rig/api.ts";
import { startCluster, type Cluster } from "../../bench/rig/cluster.ts";
import { spanTree, startOtlpCollector, type OtlpCollector } from "../support/otlp-collector.ts";
import { readTinyGoldens } from "../support/goldens.ts";

const NUM_LAYERS = 3;
const [, , golden] = await readTinyGoldens();

describe("the trace of one request to a router and 2 shards", () => {
  let collector: OtlpCollector;
  let cluster: Cluster;
  before(async () => {
    collector = await startOtlpCollector();
    cluster = await startCluster({ shards: 2, device: "cpu", env: collector.env });
  });
  after(async () => {
    await cluster?.close();
    await collector?.close();
  });

  test("is one tree, from the client's span through the router to the experts of both shards", async () => {
    const traceId = "0af7651916cd43dd8448eb211c80319c";
    const clientSpanId = "b7ad6b7169203331";
    const response = await fetch(`${cluster.url}/v1/completions`, {
      method: "POST",
      headers: {
        "content-type": "application/json",
        traceparent: `00-${traceId}-${clientSpanId}-01`,
      },
      body: JSON.stringify(greedyBody(golden.prompt, 4)),
    });
    assert.equal(response.status, 200, await response.text());

    const all = await collector.waitFor("the request's and both shards' spans", (spans) => {
      const ofTrace = spans.filter((span) => span.traceId === traceId);
      const names = new Set(ofTrace.map(({ name }) => name));
      const experts = ofTrace.filter(({ name }) => name === "moe.experts");
      const ranks = new Set(experts.map(({ attributes }) => attributes["moe.shard.rank"]));
      return names.has("text_completion qwen2_moe") && ranks.size === 2;
    });
    const spans = all.filter((span) => span.traceId === traceId);
    const tree = spanTree(spans);
    const byId = new Map(spans.map((span) => [span.spanId, span]));
    const roots = spans.filter(({ parentSpanId }) => !byId.has(parentSpanId ?? ""));
    assert.equal(roots.length, 1, tree);
    const [server] = roots;
    assert.equal(server.parentSpanId, clientSpanId, "the client's span is the parent");
    assert.equal(server.service, "switchyard-router");
    assert.equal(server.attributes["gen_ai.operation.name"], "text_completion");
    assert.equal(server.attributes["gen_ai.usage.input_tokens"], golden.prompt.length);
    assert.equal(server.attributes["gen_ai.usage.output_tokens"], 4);
    const children = spans.filter(({ parentSpanId }) => parentSpanId === server.spanId);
    assert.deepEqual(
      children.map(({ name }) => name).toSorted(),
      ["decode", "prefill", "queue"],
      tree,
    );

    const experts = spans.filter(({ name }) => name === "moe.experts");
    assert.ok(experts.length >= 2 * NUM_LAYERS, tree);
    for (const span of experts) {
      assert.equal(span.service, "switchyard-shard");
      const dispatch = byId.get(span.parentSpanId ?? "");
      assert.equal(dispatch?.name, "moe.dispatch", tree);
      assert.equal(dispatch.service, "switchyard-router");
    }
    const layersOf = (rank: number) =>
      new Set(
        experts
          .filter(({ attributes }) => attributes["moe.shard.rank"] === rank)
          .map(({ attributes }) => attributes["moe.layer"]),
      );
    // A step's few rows need not reach every shard in every layer.
    assert.equal(layersOf(0).union(layersOf(1)).size, NUM_LAYERS, tree);
    assert.ok(layersOf(0).size > 0 && layersOf(1).size > 0, tree);
  });

  test("is not recorded where the client says that it is not sampled", async () => {
    const traceId = "11112222333344445555666677778888";
    const response = await fetch(`${cluster.url}/v1/completions`, {
      method: "POST",
      headers: {
        "content-type": "application/json",
        traceparent: `00-${traceId}-b7ad6b7169203331-00`,
      },
      body: JSON.stringify(greedyBody(golden.prompt, 2)),
    });
    assert.equal(response.status, 200, await response.text());
    const sampled = await fetch(`${cluster.url}/v1/completions`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(greedyBody([1, 2, 3], 2)),
    });
    assert.equal(sampled.status, 200, await sampled.text());
    const spans = await collector.waitFor("the span of the later request", (all) =>
      all.some(({ attributes }) => attributes["gen_ai.usage.input_tokens"] === 3),
    );
    assert.ok(spans.every((span) => span.traceId !== traceId));
  });
});
