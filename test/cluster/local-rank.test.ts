import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";

import { placementOf, ranksOf } from "../../bench/rig/control-api.ts";
import { ElasticCluster } from "../../bench/rig/elastic-cluster.ts";
import { type KnownPrompt, runUndisturbed } from "../../bench/rig/load-driver.ts";
import { waitFor } from "../../bench/rig/wait-for.ts";
import { TINY_MODEL } from "../../bench/rig/cluster.ts";
import { expertBufferBytes } from "../../core/expert-memory.ts";
import { readModelConfig } from "../../core/model/load-config.ts";
import { routerConfigSchema } from "../../router-service/config.ts";
import { routerMemory } from "../../router-service/engine/router-memory.ts";
import { runnerLimits } from "../../router-service/engine/runner-limits.ts";
import { underLoad } from "../support/steady-load.ts";
import { EXPERT_BYTES, NUM_EXPERTS, NUM_LAYERS } from "../support/tiny-experts.ts";

const ALL_BYTES = NUM_LAYERS * NUM_EXPERTS * EXPERT_BYTES;

const config = await readModelConfig(TINY_MODEL);
const limits = runnerLimits(routerConfigSchema.parse({}), config);
const memory = routerMemory(config, "f32", limits, true, Number.POSITIVE_INFINITY);
/** What a router takes beside routed experts, and half of these. */
const memoryLimit = memory.total + expertBufferBytes(config) + ALL_BYTES / 2;

describe("a router whose shard has no room for all experts", { timeout: 60_000 }, () => {
  let cluster: ElasticCluster;
  let prompts: readonly KnownPrompt[];
  before(async () => {
    cluster = await ElasticCluster.start({
      shards: 1,
      redis: true,
      shardFlags: () => ["--memory-limit", `${(ALL_BYTES * 2) / 3}`],
      routerFlags: (index) => [
        "--plan-interval=0",
        index === 0 ? `--router-memory-limit=${memoryLimit}` : "--local-experts=0",
      ],
    });
    const [{ url }] = cluster.routers();
    const sizes = { count: 8, minLength: 4, maxLength: 8, maxTokens: 8 };
    ({ prompts } = await runUndisturbed(url, 5, sizes, 4));
  });
  after(() => cluster?.close());

  const held = async () => {
    const views = await Promise.all(cluster.routers().map(({ url }) => placementOf(url)));
    return views.map((view) => ranksOf(view).join());
  };

  it("holds the others itself, and gives them to a shard that joins when a router comes without room", async () => {
    assert.deepEqual(await held(), ["0,local"]);
    const [{ process }] = cluster.routers();
    assert.match(process.output(), new RegExp(`"leftForExperts":${ALL_BYTES / 2}\\b`));
    const change = async () => {
      await cluster.addShard();
      await cluster.startRouter(1);
      await waitFor("experts on shards alone", async () => {
        const ranks = await held();
        return ranks.length === 2 && ranks.every((one) => one === "0,1");
      });
    };
    const requests = await underLoad(cluster, prompts, change, 2);
    assert.ok(requests > 8, `${requests} requests`);
  });
});
