import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";

import { startHeartbeat, type Heartbeat } from "../../core/heartbeat.ts";
import { openCheckpoint, type Checkpoint } from "../../core/model/checkpoint/checkpoint.ts";
import { moeLayers } from "../../core/model/config.ts";
import { LOCAL_RANK } from "../../core/placement/placement.ts";
import type { Logger } from "../../core/platform/log.ts";
import {
  connectRedis,
  type RedisCommand,
  type RedisConnection,
} from "../../core/platform/redis.ts";
import { TINY_MODEL } from "../../bench/rig/cluster.ts";
import { startRedis, type TestRedis } from "../../bench/rig/redis.ts";
import {
  silentLogger,
  startTestShard,
  type TestShard,
  type TestShardOptions,
} from "../support/shards.ts";
import {
  assertComputes,
  epochOf,
  holders,
  isLeading,
  lossView,
  refusalOf,
  runRows,
  settled,
  startTestRouter,
  type TestRouter,
  type TestRouterOptions,
} from "../support/test-router.ts";
import { EXPERT_BYTES } from "../support/tiny-experts.ts";
import { waitFor } from "../../bench/rig/wait-for.ts";

let checkpoint: Checkpoint;
before(async () => {
  checkpoint = await openCheckpoint(TINY_MODEL);
});
after(() => checkpoint.close());

const startRouter = (routerId: string, options: TestRouterOptions) =>
  startTestRouter(checkpoint, routerId, options);

describe("two routers and their Redis", () => {
  let server: TestRedis;
  let redis: RedisConnection;
  const shards = new Map<number, { readonly shard: TestShard; readonly heartbeat: Heartbeat }>();
  let routers: TestRouter[] = [];
  let expected: Float32Array;
  const warnings: string[] = [];
  const logger: Logger = Object.assign(Object.create(silentLogger) as Logger, {
    warn: (fields: object, message: string) =>
      warnings.push(`${message} ${JSON.stringify(fields)}`),
  });

  const addShard = async (
    rank: number,
    options: Pick<TestShardOptions, "memoryLimit" | "beforeRead"> = {},
  ) => {
    const shard = await startTestShard({ rank, weights: "f32", ...options });
    const { address } = shard;
    const heartbeat = startHeartbeat({
      redis,
      modelHash: checkpoint.modelHash,
      member: () => ({
        kind: "shard",
        rank,
        address,
        adapter: "cpu",
        memoryBytes: 1e9,
        residentBytes: 0,
        pairsPerSecond: 0,
        tolerance: 0,
        weights: "f32",
        experts: "auto",
        incarnation: `shard ${rank}`,
        draining: false,
        released: false,
        residentExperts: 0,
        epoch: 0,
      }),
      onConflict: (error) => assert.fail(error),
      onError: (error) => assert.fail(error as Error),
    });
    shards.set(rank, { shard, heartbeat });
  };
  const removeShard = async (rank: number) => {
    const { shard, heartbeat } = shards.get(rank) ?? assert.fail(`no shard ${rank}`);
    shards.delete(rank);
    await shard.close();
    await heartbeat.close();
  };

  before(async () => {
    server = await startRedis();
    redis = connectRedis(server.url);
    await redis.ready(5_000);
    await Promise.all([addShard(0), addShard(1)]);
    const options = { redisUrl: server.url, minShards: 2, logger };
    routers = await Promise.all([startRouter("one", options), startRouter("two", options)]);
  });
  after(async () => {
    await Promise.all(routers.map((router) => router.close()));
    await Promise.all([...shards.keys()].map(removeShard));
    redis.close();
    await server.close();
  });

  it("find the shards and work by the first placement of the one that leads", async () => {
    assert.equal(await settled(routers, [0, 1]), 1);
    await waitFor("a leader", () => routers.some(isLeading));
    assert.equal(routers.filter(isLeading).length, 1);
    await Promise.all(routers.map(({ cluster }) => cluster.ready()));
    expected = await runRows(routers[0]);
    await assertComputes(routers[1], expected);
    for (const { plane } of routers) {
      await waitFor("why", () => plane.follower.stored()?.placement.epoch === 1);
      assert.match(plane.follower.stored()?.why ?? "", /first placement, on 2 shards/);
    }
  });

  it("give a shard that is to leave's experts to one that joined, and say when it may go", async () => {
    await addShard(2);
    const joined = ({ cluster }: TestRouter) => cluster.members().some(({ rank }) => rank === 2);
    await waitFor("the shard", () => routers.every(joined));
    assert.ok(routers[1].cluster.drain(0, false));
    const epoch = await settled(routers, [1, 2]);
    assert.ok(epoch > 1);
    for (const router of routers) await assertComputes(router, expected);
    const stored = routers[0].plane.follower.stored();
    assert.match(stored?.why ?? "", /shard 0 is to leave/);
    const released = ({ cluster }: TestRouter) =>
      cluster.members().find(({ rank }) => rank === 0)?.status?.released === true;
    await waitFor("the release", () => routers.every(released));
    await removeShard(0);
    for (const router of routers) await assertComputes(router, expected);
  });

  it("give a lost shard's experts to those that are left, whichever router leads", async () => {
    const leader = routers.find(isLeading) ?? assert.fail("nobody leads");
    await addShard(3);
    await leader.close();
    routers = routers.filter((one) => one !== leader);
    await waitFor("another leader", () => routers.every(isLeading));
    await removeShard(1);
    const [{ cluster }] = routers;
    await waitFor("no copy on 1", () => holders(routers[0]).every((rank) => rank !== 1), 15_000);
    await waitFor("copies", () => cluster.unavailableReason() === undefined, 15_000);
    await assertComputes(routers[0], expected);
  });

  it("give the shards what the device of one that joins has no room for", async (t) => {
    const memoryLimit = 15 * EXPERT_BYTES;
    const listed = await Promise.all(
      [0, 1].map((rank) => startTestShard({ rank, weights: "f32", memoryLimit })),
    );
    const near: TestRouter[] = [];
    t.after(async () => {
      await Promise.all(near.map((router) => router.close()));
      await Promise.all(listed.map((shard) => shard.close()));
    });
    const startNear = async (room: number) => {
      const options = {
        redisUrl: server.url,
        shards: listed.map(({ address }) => address),
        minShards: 2,
        localBytes: () => room * EXPERT_BYTES,
      };
      near.push(await startRouter(`room for ${room}`, options));
    };
    const numLocal = ({ cluster }: TestRouter) =>
      [...(cluster.current()?.placement.layers.values() ?? [])]
        .flat()
        .filter((copies) => copies.some(({ rank }) => rank === LOCAL_RANK)).length;
    await startNear(12);
    await near[0].cluster.ready();
    assert.equal(numLocal(near[0]), 12);
    const sums = await runRows(near[0]);
    await startNear(8);
    await waitFor("a placement for both", () =>
      near.every((router) => epochOf(router) > 1 && numLocal(router) <= 8),
    );
    for (const router of near) {
      await router.cluster.ready();
      await assertComputes(router, sums);
    }
    assert.match(near[0].plane.follower.stored()?.why ?? "", /shard local is short of memory/);
  });

  it("put a placement back that a Redis has lost, and go on as before meanwhile", async () => {
    const [router] = routers;
    const epoch = epochOf(router);
    await server.restart();
    await waitFor(
      "the placement",
      async () => {
        const [stored] = await redis.pipeline([
          ["HGET", `switchyard:v1:{${checkpoint.modelHash}}:placement`, "epoch"],
        ]);
        return Number(stored ?? 0) >= epoch;
      },
      15_000,
    );
    assert.equal(epochOf(router), epoch);
    await assertComputes(router, expected);
  });

  it("take back what another one that planned meanwhile said of room", async () => {
    const prefix = `switchyard:v1:{${checkpoint.modelHash}}`;
    const said = async () => {
      const [[text]] = (await redis.pipeline([
        ["HMGET", `${prefix}:placement`, "unplaceable"],
      ])) as [[Buffer | null]];
      return text?.toString();
    };
    await waitFor("its own word", async () => (await said()) === undefined);
    await redis.pipeline([
      ["HSET", `${prefix}:placement`, "unplaceable", "no room"],
      ["DEL", `${prefix}:lease`],
    ]);
    await waitFor("the correction", async () => (await said()) === undefined, 5_000);
    assert.ok(isLeading(routers[0]));
  });

  it("replace a placement that can not be read by one of a later epoch, and warn of it once", async () => {
    const [router] = routers;
    const key = `switchyard:v1:{${checkpoint.modelHash}}:placement`;
    const storedEpoch = async () => Number((await redis.pipeline([["HGET", key, "epoch"]]))[0]);
    const broken = `{"epoch":${epochOf(router) + 40},"layers":`;
    const DAMAGES: readonly [what: string, damage: readonly RedisCommand[], said: RegExp][] = [
      ["a body that breaks off", [["HSET", key, "body", broken]], /can not be read: .*JSON/],
      ["an epoch that is none", [["HSET", key, "epoch", Buffer.from([255])]], /its epoch is \\"ÿ/],
      ["no body", [["HDEL", key, "body"]], /can not be read: .*JSON/],
      [
        "no hash",
        [
          ["DEL", key],
          ["RPUSH", key, "a list"],
        ],
        /it is no hash/,
      ],
    ];
    for (const [what, damage, said] of DAMAGES) {
      const before = epochOf(router);
      warnings.length = 0;
      await redis.pipeline(damage);
      router.plane.planner.wake();
      await waitFor(`a new placement for ${what}`, () => epochOf(router) > before, 5_000);
      if (damage[0].includes(broken)) assert.equal(epochOf(router), before + 41);
      assert.equal(await storedEpoch(), epochOf(router));
      const told = warnings.filter((one) => one.includes("can not be read"));
      assert.equal(told.length, 1, warnings.join("\n"));
      assert.ok(told[0].includes(key));
      assert.match(told[0], said);
      assert.deepEqual(warnings, told, "nothing else is warned of");
    }
    await assertComputes(router, expected);
  });

  it("refuse requests, the one that follows too, where no shard that is left has room", async () => {
    routers.push(await startRouter("three", { redisUrl: server.url }));
    const [, follower] = routers;
    await addShard(4, { memoryLimit: 200_000 });
    await waitFor(
      "the follower",
      () => epochOf(follower) > 0 && epochOf(follower) === epochOf(routers[0]),
      15_000,
    );
    await follower.cluster.ready();
    const joined = ({ cluster }: TestRouter) => cluster.members().some(({ rank }) => rank === 4);
    await waitFor("the small shard", () => routers.every(joined));
    const refusal = refusalOf(follower);
    await Promise.all([removeShard(2), removeShard(3)]);
    const experts = moeLayers(checkpoint.config).length * checkpoint.config.numExperts;
    for (const router of routers) {
      // Long before the one that plans gives up on those two.
      const view = await waitFor(
        "the loss to be seen",
        async () => {
          const seen = await lossView(router);
          return seen.lost?.experts === experts ? seen : undefined;
        },
        2_000,
      );
      assert.ok((view.lost?.experts_without_room ?? 0) > 0);
      assert.match(view.unplaceable ?? "", /1 shard offers 200000 bytes/);
      assert.equal(view.predicted_step_seconds, null);
      const away = view.shards.filter(({ state }) => state === "away");
      assert.deepEqual(
        away.map(({ rank }) => rank),
        [2, 3],
      );
    }
    assert.match(await refusal, /experts take \d+ bytes \(.*\); 1 shard offers 200000 bytes/);
    assert.ok(!isLeading(follower));
  });

  it("take requests again as soon as a shard with room is there, while it loads their experts", async () => {
    const loads = Promise.withResolvers<void>();
    await addShard(5, { beforeRead: () => loads.promise });
    const isTaken = ({ cluster }: TestRouter) => cluster.unavailableReason() === undefined;
    const taken = () => routers.every(isTaken) && routers.map((one) => one.cluster.missingReason());
    const missing = await waitFor("the word", taken).finally(loads.resolve);
    assert.ok(missing.every(Boolean), "it was loaded already");
    await Promise.all(routers.map(({ cluster }) => cluster.ready()));
    for (const router of routers) await assertComputes(router, expected);
  });
});
