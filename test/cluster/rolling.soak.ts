import { test } from "node:test";

import { ElasticCluster } from "../../bench/rig/elastic-cluster.ts";
import { runUndisturbed } from "../../bench/rig/load-driver.ts";
import { growAndShrink, replaceEveryShard } from "../support/rolling.ts";
import { withoutTies } from "../support/routing-ties.ts";
import { underLoad } from "../support/steady-load.ts";

/** Times that every shard is replaced, and that the cluster grows and shrinks. */
const TIMES = 5;

test("two routers fail no request while every shard is replaced and the cluster grows and shrinks, five times", async (t) => {
  const cluster = await ElasticCluster.start({ shards: 2, routers: 2, redis: true });
  try {
    const sizes = { count: 64, minLength: 8, maxLength: 120, maxTokens: 32 };
    const drawn = await runUndisturbed(cluster.routers()[0].url, 32, sizes);
    const prompts = await withoutTies(drawn.prompts);
    for (let time = 0; time < TIMES; time++) {
      const replaced = await underLoad(cluster, prompts, () => replaceEveryShard(cluster));
      const scaled = await underLoad(cluster, prompts, () => growAndShrink(cluster));
      t.diagnostic(`${replaced} requests while shards were replaced, ${scaled} while scaling`);
    }
  } finally {
    await cluster.close();
  }
});
