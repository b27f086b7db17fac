import assert from "node:assert/strict";
import { after, describe, test } from "node:test";

import { assertGreedy } from "../support/expectations.ts";
import { startCluster, type Cluster } from "../../bench/rig/cluster.ts";
import { startDelayProxy, type DelayProxy } from "../../bench/rig/delay-proxy.ts";
import { readTinyGoldens } from "../support/goldens.ts";

const goldens = await readTinyGoldens();

describe("two shards, every byte 2 ms on the way", () => {
  let cluster: Cluster | undefined;
  const proxies: DelayProxy[] = [];
  const close = async () => {
    await cluster?.close();
    await Promise.all(proxies.splice(0).map((proxy) => proxy.close()));
  };
  after(close);

  for (const microBatches of ["1", "2"]) {
    test(`--micro-batches ${microBatches} gives many sequences their known tokens`, async () => {
      cluster = await startCluster({
        shards: 2,
        // Micro-batches are the router's GPU's.
        shardFlags: ["--device", "cpu"],
        routerFlags: ["--micro-batches", microBatches],
        portOfShard: async (port) => {
          const proxy = await startDelayProxy(port, 2);
          proxies.push(proxy);
          return proxy.port;
        },
      });
      const { url } = cluster;
      const startedAt = performance.now();
      await Promise.all([...goldens, ...goldens].map((golden) => assertGreedy(url, golden)));
      // Each step has three layers of 4 ms at least, whatever is computed meanwhile.
      const leastMs = goldens[0].greedy.length * 3 * 4;
      assert.ok(performance.now() - startedAt > leastMs, "the bytes came too early");
      await close();
    });
  }
});
