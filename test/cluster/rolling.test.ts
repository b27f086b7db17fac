import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";

import { ElasticCluster } from "../../bench/rig/elastic-cluster.ts";
import { runUndisturbed, type KnownPrompt } from "../../bench/rig/load-driver.ts";
import { growAndShrink, replaceEveryShard } from "../support/rolling.ts";
import { withoutTies } from "../support/routing-ties.ts";
import { underLoad } from "../support/steady-load.ts";

/** Requests at a time: more would only take the processor time in which shards start. */
const CONCURRENCY = 4;

describe("a cluster of 2 shards that register in Redis, under load", () => {
  let cluster: ElasticCluster;
  let prompts: readonly KnownPrompt[];
  before(async () => {
    cluster = await ElasticCluster.start({ shards: 2, redis: true });
    const [{ url }] = cluster.routers();
    const sizes = { count: 24, minLength: 4, maxLength: 24, maxTokens: 12 };
    prompts = await withoutTies((await runUndisturbed(url, 31, sizes)).prompts);
  });
  after(() => cluster?.close());

  test("fails no request while each shard is replaced by another", async () => {
    const requests = await underLoad(
      cluster,
      prompts,
      () => replaceEveryShard(cluster),
      CONCURRENCY,
    );
    assert.ok(requests > 8, `${requests} requests`);
    assert.deepEqual(
      cluster.shards().map(({ rank }) => rank),
      [2, 3],
    );
  });

  test("fails no request while it grows to 4 shards and shrinks to 2 again", async () => {
    const requests = await underLoad(cluster, prompts, () => growAndShrink(cluster), CONCURRENCY);
    assert.ok(requests > 8, `${requests} requests`);
    assert.equal(cluster.shards().length, 2);
  });
});
