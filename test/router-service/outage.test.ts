import assert from "node:assert/strict";
import { after, before, describe, it, type TestContext } from "node:test";

import { startFaultProxy } from "../../bench/rig/fault-proxy.ts";
import { TINY_MODEL } from "../../bench/rig/cluster.ts";
import { startRedis } from "../../bench/rig/redis.ts";
import { waitFor } from "../../bench/rig/wait-for.ts";
import { openCheckpoint, type Checkpoint } from "../../core/model/checkpoint/checkpoint.ts";
import { startTestShard } from "../support/shards.ts";
import {
  assertComputes,
  epochOf,
  holders,
  isLeading,
  refusalOf,
  runRows,
  settled,
  startTestRouter,
  type TestRouter,
} from "../support/test-router.ts";

let checkpoint: Checkpoint;
before(async () => {
  checkpoint = await openCheckpoint(TINY_MODEL);
});
after(() => checkpoint.close());

/** Shards of ranks from 0 that routers list, and a Redis. */
async function startPlace(t: TestContext, memoryLimits: readonly (number | undefined)[]) {
  const redis = await startRedis();
  const shards = await Promise.all(
    memoryLimits.map((memoryLimit, rank) => startTestShard({ rank, weights: "f32", memoryLimit })),
  );
  const routers: TestRouter[] = [];
  t.after(async () => {
    await Promise.all(routers.map((router) => router.close()));
    await Promise.all(shards.map((shard) => shard.close()));
    await redis.close();
  });
  const options = { minShards: shards.length, shards: shards.map(({ address }) => address) };
  const startRouter = async (routerId: string, redisUrl: string) => {
    const router = await startTestRouter(checkpoint, routerId, { ...options, redisUrl });
    routers.push(router);
    await router.cluster.ready();
    return router;
  };
  return { redis, shards, startRouter };
}

const whyOf = ({ plane }: TestRouter) => plane.follower.stored()?.why ?? "";

describe("a router whose Redis can not be reached", { concurrency: true }, () => {
  it("re-homes what a lost and a leaving shard hold, and tells Redis of it afterwards", async (t) => {
    const { redis, shards, startRouter } = await startPlace(t, [undefined, undefined, undefined]);
    const router = await startRouter("alone", redis.url);
    await waitFor("the lease", () => isLeading(router));
    const expected = await runRows(router);
    const before = epochOf(router);
    redis.freeze();
    await shards[1].close();
    await settled([router], [0, 2]);
    await router.cluster.ready();
    await assertComputes(router, expected);
    assert.match(whyOf(router), /shard 1 is gone.*; while Redis was away/);
    assert.ok(router.cluster.drain(2, false));
    const epoch = await settled([router], [0]);
    assert.ok(epoch > before);
    const leaving = () => router.cluster.members().find(({ rank }) => rank === 2);
    await waitFor("the release", () => leaving()?.status?.released === true);
    redis.thaw();
    await waitFor("the lease", () => isLeading(router), 10_000);
    const other = await startRouter("other", redis.url);
    assert.equal(await settled([router, other], [0]), epoch);
    await waitFor("why", () => whyOf(other) === whyOf(router));
    await assertComputes(other, expected);
  });

  it("refuses requests where no shard that is left has room, until one is back", async (t) => {
    const { redis, shards, startRouter } = await startPlace(t, [undefined, 200_000]);
    const router = await startRouter("alone", redis.url);
    await waitFor("the lease", () => isLeading(router));
    const expected = await runRows(router);
    await redis.kill();
    const { port } = new URL(`http://${shards[0].address}`);
    await shards[0].close();
    assert.match(
      await refusalOf(router),
      /experts take \d+ bytes \(.*\); 1 shard offers 200000 bytes/,
    );
    const back = await startTestShard({ rank: 0, weights: "f32", port: Number(port) });
    t.after(() => back.close());
    await router.cluster.ready();
    await assertComputes(router, expected);
    await waitFor("the end of it", () => router.cluster.unavailableReason() === undefined);
  });

  it("plans beside the one that took its place, and follows it when it can", async (t) => {
    const { redis, shards, startRouter } = await startPlace(t, [undefined, undefined, undefined]);
    const proxy = await startFaultProxy(redis.port, 1);
    t.after(() => proxy.close());
    const cut = await startRouter("cut off", `redis://127.0.0.1:${proxy.port}`);
    await waitFor("the lease", () => isLeading(cut));
    const expected = await runRows(cut);
    const other = await startRouter("other", redis.url);
    proxy.setTarget(undefined);
    proxy.reset();
    await waitFor("another leader", () => isLeading(other), 10_000);
    await shards[1].close();
    const isMended = (router: TestRouter) => holders(router).join() === "0,2";
    await waitFor("both to mend", () => isMended(cut) && isMended(other), 15_000);
    assert.notEqual(epochOf(cut), epochOf(other));
    for (const router of [cut, other]) await assertComputes(router, expected);
    proxy.setTarget(redis.port);
    const epoch = await settled([cut, other], [0, 2]);
    assert.ok(isLeading(other));
    for (const router of [cut, other]) await assertComputes(router, expected);
    await waitFor("the other epochs to go", () =>
      other.cluster
        .members()
        .every(({ rank, status }) => rank === 1 || status?.epochs.join() === `${epoch}`),
    );
  });
});
