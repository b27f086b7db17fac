import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";

import {
  continueGreedily,
  greedyBody,
  metric,
  postJson,
  streamCompletion,
} from "../../bench/rig/api.ts";
import { isHealthy, startCluster, type Cluster } from "../../bench/rig/cluster.ts";
import { assertGreedy } from "../support/expectations.ts";
import { readTinyGoldens } from "../support/goldens.ts";
import { waitFor } from "../../bench/rig/wait-for.ts";

const goldens = await readTinyGoldens();

describe("a cluster of 2 shards, each expert on one", () => {
  let cluster: Cluster;
  before(async () => {
    cluster = await startCluster({ shards: 2, device: "cpu" });
  });
  after(() => cluster?.close());
  const resends = () => metric(cluster.url, "moe_resends_total");

  test("goes on with a stream whose shard was killed when it is back, and changes no token of it", async () => {
    const body = greedyBody(goldens[2].prompt, 150);
    const undisturbed = await continueGreedily(cluster.url, goldens[2].prompt, 150);
    const ids: number[] = [];
    let restarted: Promise<void> | undefined;
    for await (const chunk of streamCompletion(cluster.url, body)) {
      if (chunk === undefined) break;
      assert.equal(chunk.error, undefined, JSON.stringify(chunk.error));
      ids.push(...(chunk.choices[0]?.token_ids ?? []));
      if (ids.length < 5 || restarted !== undefined) continue;
      cluster.shards[1].kill("SIGKILL");
      restarted = cluster.restartShard(1);
    }
    await restarted;
    assert.deepEqual(ids, undisturbed.ids);
    assert.ok((await resends()) > 0, "the shard was killed under the stream");
    assert.ok(await isHealthy(cluster.url));
    await assertGreedy(cluster.url, goldens[2]);
    assert.equal(await metric(cluster.url, "vllm:num_requests_running"), 0);
    assert.equal(await metric(cluster.url, "vllm:num_requests_waiting"), 0);
    assert.equal(await metric(cluster.url, "vllm:kv_cache_usage_perc"), 0);
  });

  test("takes requests while a shard is away, and answers them when it is back", async () => {
    cluster.shards[0].kill("SIGKILL");
    const answers = [0, 1].map((i) =>
      postJson(`${cluster.url}/v1/completions`, greedyBody(goldens[i].prompt, 24)),
    );
    await waitFor(
      "a request that runs",
      async () => (await metric(cluster.url, "vllm:num_requests_running")) > 0,
    );
    await cluster.restartShard(0);
    for (const { status, body } of await Promise.all(answers)) {
      assert.equal(status, 200, JSON.stringify(body));
    }
  });

  test("goes on with all requests when a shard was stopped for a moment", async () => {
    // A paused process is the hang that no closed connection announces.
    const answers = [0, 1, 2, 3].map((i) =>
      continueGreedily(cluster.url, goldens[i].prompt, goldens[i].greedy.length),
    );
    const startedAt = performance.now();
    cluster.shards[0].kill("SIGSTOP");
    try {
      await waitFor(
        "running requests",
        async () => (await metric(cluster.url, "vllm:num_requests_running")) > 0,
      );
      await waitFor(
        "rows that wait or are sent again",
        async () => (await resends()) > 0 && performance.now() - startedAt > 1000,
      );
    } finally {
      cluster.shards[0].kill("SIGCONT");
    }
    for (const [i, { ids }] of (await Promise.all(answers)).entries()) {
      assert.deepEqual(ids, goldens[i].greedy);
    }
  });
});
