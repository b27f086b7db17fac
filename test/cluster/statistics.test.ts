import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";

import { connectRedis, type RedisConnection } from "../../core/platform/redis.ts";
import { selectSeries } from "../../core/statistics/load.ts";
import { listModels, readQueued } from "../../core/statistics/reader.ts";
import { greedyBody } from "../../bench/rig/api.ts";
import { startCluster, type Cluster } from "../../bench/rig/cluster.ts";
import { readTinyGoldens, readTinyRouting } from "../support/goldens.ts";
import { startRedis, type TestRedis } from "../../bench/rig/redis.ts";
import { readStatistics } from "../support/read-statistics.ts";
import { runCommand } from "../support/run-command.ts";
import { waitFor } from "../../bench/rig/wait-for.ts";

const goldens = await readTinyGoldens();

describe("the routing statistics of a router and 2 shards", () => {
  let server: TestRedis;
  let redis: RedisConnection;
  let cluster: Cluster;
  before(async () => {
    server = await startRedis();
    redis = connectRedis(server.url);
    await redis.ready(5000);
    const routerFlags = ["--redis-url", server.url];
    cluster = await startCluster({ shards: 2, device: "cpu", routerFlags });
  });
  after(async () => {
    await cluster?.close();
    redis?.close();
    await server?.close();
  });

  async function say(task: string, prompt: readonly number[], maxTokens: number): Promise<void> {
    const response = await fetch(`${cluster.url}/v1/completions`, {
      method: "POST",
      headers: { "content-type": "application/json", "x-switchyard-task": task },
      body: JSON.stringify(greedyBody(prompt, maxTokens)),
    });
    assert.equal(response.status, 200, await response.text());
  }

  async function seriesOf(task: string, phase: "prefill" | "decode", tokens: number) {
    return waitFor(`${tokens} tokens of ${task} ${phase} in Redis`, async () => {
      const [model] = await listModels(redis);
      if (!model?.shape) return undefined;
      const window = { windowSeconds: 600, now: Date.now() / 1000 };
      const sum = await readStatistics(redis, model.modelHash, window);
      const [series] = selectSeries(sum.series, { task, phase });
      return series?.tokens === tokens ? { series, numExperts: sum.numExperts } : undefined;
    });
  }

  test("are exactly the goldens' routing, expert by expert, with their gate weights", async () => {
    await Promise.all(goldens.map(({ prompt }, i) => say(`golden-${i}`, prompt, 1)));
    for (const [i, { prompt }] of goldens.entries()) {
      const { series, numExperts } = await seriesOf(`golden-${i}`, "prefill", prompt.length);
      const layers = await readTinyRouting(i);
      for (const [layer, { ids, weights }] of layers.entries()) {
        const expectedTokens = Array.from({ length: numExperts }, () => 0);
        const expectedWeights = Array.from({ length: numExperts }, () => 0);
        ids.forEach((id, k) => {
          expectedTokens[id]++;
          expectedWeights[id] += weights[k];
        });
        const begin = layer * numExperts;
        const ofLayer = series.expertTokens.subarray(begin, begin + numExperts);
        assert.deepEqual([...ofLayer], expectedTokens, `prompt ${i} layer ${layer}`);
        for (const [expert, weight] of expectedWeights.entries()) {
          const error = Math.abs(series.weightSums[begin + expert] - weight);
          assert.ok(error <= 1e-3, `prompt ${i} layer ${layer} expert ${expert}: off by ${error}`);
        }
      }
    }
  });

  test("tell prefill from decode and one task from another", async () => {
    await say("poetry", [5, 6, 7], 9);
    await seriesOf("poetry", "prefill", 3);
    // The ninth token is not run through the model again.
    await seriesOf("poetry", "decode", 8);
  });

  test("are shown by switchyard stats", async () => {
    const { code, stdout, stderr } = await runCommand("deploy/switchyard.ts", [
      "stats",
      "--redis-url",
      server.url,
    ]);
    assert.equal(code, 0, stderr);
    for (const task of ["golden-3", "poetry"]) assert.match(stdout, new RegExp(task));
    for (const layer of [0, 1, 2]) assert.match(stdout, new RegExp(`layer ${layer}`, "i"));
  });

  test("say what the router expects to run next, while it runs something", async () => {
    const over = new AbortController();
    const load = (async () => {
      while (!over.signal.aborted) await say("steady", [4, 3, 2], 30);
    })();
    try {
      await waitFor("decodes of the task are expected", async () => {
        const [model] = await listModels(redis);
        if (model === undefined) return undefined;
        const queued = await readQueued(redis, model.modelHash, Date.now() / 1000);
        return queued.find(
          ({ task, phase, tokens }) => task === "steady" && phase === "decode" && tokens <= 30,
        );
      });
    } finally {
      over.abort();
      await load;
    }
  });

  test("stop at nothing while Redis is gone, and are flushed when it is back", async () => {
    await server.kill();
    await say("meanwhile", [9, 8, 7, 6], 4);
    await server.restart();
    await seriesOf("meanwhile", "prefill", 4);
    await seriesOf("meanwhile", "decode", 3);
  });
});
