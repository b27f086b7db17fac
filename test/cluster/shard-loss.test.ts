import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";

import {
  complete,
  continueGreedily,
  greedyBody,
  metric,
  postJson,
  streamCompletion,
} from "../support/api.ts";
import { isHealthy, startCluster, type Cluster } from "../support/cluster.ts";
import { assertGreedy } from "../support/expectations.ts";
import { readTinyGoldens } from "../support/goldens.ts";
import { waitFor } from "../support/wait-for.ts";

const goldens = await readTinyGoldens();

describe("a cluster of 2 shards", () => {
  let cluster: Cluster;
  before(async () => {
    cluster = await startCluster({ shards: 2 });
  });
  after(() => cluster?.close());

  test("ends a running stream with an error within 2 s when a shard is killed, and recovers when it is back", async () => {
    const body = greedyBody(goldens[2].prompt, 400);
    const chunks = [];
    let killedAt = 0;
    for await (const chunk of streamCompletion(cluster.url, body)) {
      if (chunk === undefined) assert.fail("the stream ended as if all were well");
      chunks.push(chunk);
      if (chunks.length === 5) {
        cluster.shards[1].kill("SIGKILL");
        killedAt = performance.now();
      }
      if (chunk.error) break;
    }
    const endedAfter = performance.now() - killedAt;
    const { error } = chunks.at(-1) ?? {};
    assert.ok(
      error,
      `no error event; the last of ${chunks.length} chunks: ${JSON.stringify(chunks.at(-1))}`,
    );
    assert.equal(error.code, "unavailable");
    assert.ok(endedAfter < 2000, `${endedAfter} ms`);
    assert.ok(chunks.length < 300, "the stream was cut in its middle");

    await waitFor("an unhealthy router", async () => !(await isHealthy(cluster.url)), 2000);
    const refused = await postJson(`${cluster.url}/v1/completions`, body);
    assert.equal(refused.status, 503, JSON.stringify(refused.body));

    await cluster.restartShard(1);
    await waitFor("a healthy router", () => isHealthy(cluster.url), 15_000);
    await assertGreedy(cluster.url, goldens[2]);
    assert.equal(await metric(cluster.url, "vllm:num_requests_running"), 0);
    assert.equal(await metric(cluster.url, "vllm:num_requests_waiting"), 0);
    assert.equal(await metric(cluster.url, "vllm:kv_cache_usage_perc"), 0);
  });

  test("answers all requests that are under way when a shard is stopped for a moment", async () => {
    // A paused process is the hang that no closed connection announces: the dispatch timeout has to see it.
    const answers = [0, 1, 2, 3].map((i) =>
      postJson(`${cluster.url}/v1/completions`, greedyBody(goldens[i].prompt, 300)),
    );
    await waitFor(
      "running requests",
      async () => (await metric(cluster.url, "vllm:num_requests_running")) === 4,
    );
    const startedAt = performance.now();
    cluster.shards[0].kill("SIGSTOP");
    try {
      const statuses = (await Promise.all(answers)).map(({ status }) => status);
      assert.ok(
        statuses.every((status) => status === 503),
        statuses.join(),
      );
      assert.ok(performance.now() - startedAt < 4000, "the dispatch timeout is 2 s");
    } finally {
      cluster.shards[0].kill("SIGCONT");
    }
    await waitFor("a healthy router", () => isHealthy(cluster.url), 15_000);
    const { ids } = await continueGreedily(cluster.url, goldens[1].prompt, 24);
    assert.deepEqual(ids, goldens[1].greedy);
    const { usage } = await complete(cluster.url, greedyBody(goldens[0].prompt, 3));
    assert.equal(usage?.completion_tokens, 3);
  });
});
