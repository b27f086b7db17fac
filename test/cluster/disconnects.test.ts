import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { after, before, describe, test } from "node:test";

import { randomInteger, seededRandom } from "../../bench/load/random.ts";
import { greedyBody, metric, streamCompletion } from "../support/api.ts";
import { startCluster, type Cluster } from "../support/cluster.ts";
import { assertGreedy } from "../support/expectations.ts";
import { readTinyGoldens } from "../support/goldens.ts";
import { waitFor } from "../support/wait-for.ts";

const NUM_REQUESTS = 200;
const CONCURRENCY = 32;

/** Resident memory of a process, bytes. */
async function residentBytes(pid: number): Promise<number> {
  const status = await readFile(`/proc/${pid}/status`, "utf8");
  return Number(/VmRSS:\s+(\d+) kB/.exec(status)?.[1]) * 1024;
}

describe("200 streaming requests, 32 at a time, whose clients go at random moments", () => {
  let cluster: Cluster;
  before(async () => {
    cluster = await startCluster({ shards: 2 });
  });
  after(() => cluster?.close());

  test("leave no block, no sequence and no memory behind", async () => {
    const random = seededRandom(11);
    let finished = 0;
    let left = 0;
    let next = 0;
    let rssAt50 = 0;

    async function requestInTurn(): Promise<void> {
      while (next < NUM_REQUESTS) {
        next++;
        const prompt = Array.from({ length: 1 + randomInteger(random, 60) }, () =>
          randomInteger(random, 384),
        );
        const goesAfter = random() < 0.5 ? randomInteger(random, 20) : Infinity;
        const controller = new AbortController();
        let chunks = 0;
        try {
          if (goesAfter === 0) setTimeout(() => controller.abort(), 5);
          const stream = streamCompletion(cluster.url, greedyBody(prompt, 24), controller.signal);
          for await (const chunk of stream) {
            assert.equal(chunk?.error, undefined);
            if (++chunks > goesAfter) controller.abort();
          }
        } catch (error) {
          if (!controller.signal.aborted) throw error;
          left++;
        }
        finished++;
        if (finished === 50) rssAt50 = await residentBytes(cluster.router.pid);
      }
    }
    await Promise.all(Array.from({ length: CONCURRENCY }, requestInTurn));

    assert.equal(finished, NUM_REQUESTS);
    assert.ok(left > NUM_REQUESTS / 4 && left < (NUM_REQUESTS * 3) / 4, `${left} left early`);
    await waitFor("all KV blocks to be free", async () => {
      const running = await metric(cluster.url, "vllm:num_requests_running");
      const waiting = await metric(cluster.url, "vllm:num_requests_waiting");
      const usage = await metric(cluster.url, "vllm:kv_cache_usage_perc");
      return running === 0 && waiting === 0 && usage === 0;
    });
    const rss = await residentBytes(cluster.router.pid);
    const growth = rss / rssAt50 - 1;
    assert.ok(growth <= 0.05, `RSS grew by ${(growth * 100).toFixed(1)} % to ${rss} bytes`);
    for (const golden of await readTinyGoldens()) await assertGreedy(cluster.url, golden);
  });
});
