import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";

import { metric } from "../../bench/rig/api.ts";
import { placementOf, ranksOf } from "../../bench/rig/control-api.ts";
import { ElasticCluster } from "../../bench/rig/elastic-cluster.ts";
import { type KnownPrompt, runUndisturbed } from "../../bench/rig/load-driver.ts";
import { waitFor } from "../../bench/rig/wait-for.ts";
import { underLoad } from "../support/steady-load.ts";

/**
 * Time between two plans, seconds. A plan may load what the shards load in half of it: at 0.3 s, after a move that took long
 * on busy cores, less than the experts that have to leave a far shard, of which a part would save nothing.
 */
const PLAN_SECONDS = 1;

/** Longest time until both work by a better placement, milliseconds: 4 to 10 s on busy cores, as the change itself makes speeds uncertain at first. */
const CONVERGE_MS = 20_000;

/** Time between two looks: an answer takes a router some milliseconds, and more would keep it from its steps. */
const LOOK_MS = 200;

/** A link that is so slow costs more than a shard computes in the time, milliseconds each way. */
const FAR_MS = 25;

describe(
  "two routers whose shards are both there, one of them far away",
  { timeout: 60_000 },
  () => {
    let cluster: ElasticCluster;
    let prompts: readonly KnownPrompt[];
    before(async () => {
      cluster = await ElasticCluster.start({
        shards: 2,
        routers: 2,
        redis: true,
        proxied: true,
        routerFlags: ["--plan-interval", `${PLAN_SECONDS}`],
      });
      const [{ url }] = cluster.routers();
      const sizes = { count: 8, minLength: 4, maxLength: 8, maxTokens: 8 };
      ({ prompts } = await runUndisturbed(url, 5, sizes, 4));
    });
    after(() => cluster?.close());

    it("move all experts to the near one for what that gains alone, and no token differs", async () => {
      const urls = cluster.routers().map(({ url }) => url);
      const views = () => Promise.all(urls.map(placementOf));
      const before = await views();
      // Before it was far away, either shard may have been found to do alone.
      const [far] = ranksOf(before[0]);
      const near = 1 - Number(far);
      const change = async () => {
        cluster.shard(Number(far)).proxy?.setFaults({ delayMs: FAR_MS });
        await waitFor(
          `experts on shard ${near} alone`,
          async () => {
            const seen = await views();
            if (seen.every((view) => ranksOf(view).join() === `${near}`)) return true;
            throw new Error(seen.map((view) => view.last_decision ?? "does not plan").join("; "));
          },
          CONVERGE_MS,
          LOOK_MS,
        );
      };
      const requests = await underLoad(cluster, prompts, change, 4);
      assert.ok(requests > 4, `${requests} requests`);
      const leading = () => Promise.all(urls.map((url) => metric(url, "moe_planner_leader")));
      await waitFor("one that leads", async () => new Set(await leading()).size === 2);
      const one = await waitFor("one epoch", async () => {
        const [first, second] = await views();
        return first.epoch === second.epoch && first;
      });
      assert.ok(one.epoch > before[0].epoch);
      assert.match(one.why ?? "", /^a step is expected to take .* instead of /);
    });
  },
);
