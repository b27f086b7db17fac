import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";

import { continueGreedily, greedyBody, metric, streamCompletion } from "../../bench/rig/api.ts";
import { placementOf, ranksOf, waitForConvergence } from "../../bench/rig/control-api.ts";
import { ElasticCluster } from "../../bench/rig/elastic-cluster.ts";

const CONVERGE_MS = 20_000;
const PROMPT = [5, 9, 2, 7];
const TOKENS = 150;

/** Longest time without a token when a shard is gone, by a router that led and by one that waits for it, milliseconds. */
const LONGEST_GAP_MS = 8_000;

describe("while Redis is away, two routers and shards with one copy of each expert", () => {
  let cluster: ElasticCluster;
  let expected: readonly number[];
  let epochBefore: number;

  const urls = () => cluster.routers().map(({ url }) => url);

  /** A stream on every router, across what happens when all of them have begun. */
  const streamAcross = async (happening: () => Promise<void>) => {
    const begun = urls().map(() => Promise.withResolvers<void>());
    const streams = urls().map(async (url, at) => {
      const ids: number[] = [];
      let lastAt = performance.now();
      let longestGapMs = 0;
      for await (const chunk of streamCompletion(url, greedyBody(PROMPT, TOKENS))) {
        if (chunk === undefined) break;
        assert.equal(chunk.error, undefined, JSON.stringify(chunk.error));
        ids.push(...(chunk.choices[0]?.token_ids ?? []));
        longestGapMs = Math.max(longestGapMs, performance.now() - lastAt);
        lastAt = performance.now();
        if (ids.length === 5) begun[at].resolve();
      }
      begun[at].resolve();
      assert.deepEqual(ids, expected);
      assert.ok(longestGapMs < LONGEST_GAP_MS, `${longestGapMs} ms without a token`);
    });
    const happened = Promise.all(begun.map(({ promise }) => promise)).then(happening);
    await Promise.all([...streams, happened]).catch((error: unknown) => {
      throw new Error(cluster.output(), { cause: error });
    });
  };
  /** What every router says of its Redis: in its placement, and as a gauge. */
  const redisAway = () =>
    Promise.all(
      urls().map(async (url) => [
        (await placementOf(url)).redis_away,
        await metric(url, "moe_redis_away"),
      ]),
    );
  const ranksHeld = async () =>
    Promise.all(urls().map(async (url) => ranksOf(await placementOf(url))));

  before(async () => {
    cluster = await ElasticCluster.start({
      shards: 3,
      routers: 2,
      redis: true,
      routerFlags: ["--plan-interval", "0"],
    });
    await waitForConvergence(cluster, CONVERGE_MS);
    expected = (await continueGreedily(urls()[0], PROMPT, TOKENS)).ids;
    epochBefore = (await placementOf(urls()[0])).epoch;
    await cluster.redis?.kill();
  });
  after(() => cluster.close());

  it("goes on with all streams when a shard is killed, and changes no token of them", async () => {
    await streamAcross(() => cluster.killShard(1));
    assert.deepEqual(
      await ranksHeld(),
      urls().map(() => [0, 2]),
    );
  });

  it("gives what a shard that is stopped holds another home before it goes", async () => {
    await streamAcross(() => cluster.stopShard(2));
    assert.deepEqual(
      await ranksHeld(),
      urls().map(() => [0]),
    );
  });

  it("says so for as long as it is, and comes to one placement when Redis is back", async () => {
    assert.deepEqual(
      await redisAway(),
      urls().map(() => [true, 1]),
    );
    await cluster.redis?.restart();
    await waitForConvergence(cluster, CONVERGE_MS);
    assert.deepEqual(
      await redisAway(),
      urls().map(() => [false, 0]),
    );
    const { epoch } = await placementOf(urls()[0]);
    assert.ok(epoch > epochBefore);
    assert.deepEqual(
      await ranksHeld(),
      urls().map(() => [0]),
    );
    for (const url of urls()) {
      assert.deepEqual((await continueGreedily(url, PROMPT, TOKENS)).ids, expected);
    }
  });
});
