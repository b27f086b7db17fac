import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";

import { startHeartbeat } from "../../core/heartbeat.ts";
import {
  announce,
  decodeRegistration,
  encodeRegistration,
  MEMBER_EXPIRY_MS,
  MemberConflictError,
  membershipKeys,
  readMembers,
  type RouterRegistration,
  type ShardRegistration,
  withdraw,
} from "../../core/membership.ts";
import { connectRedis, type RedisConnection } from "../../core/platform/redis.ts";
import { startRedis, type TestRedis } from "../../bench/rig/redis.ts";
import { waitFor } from "../../bench/rig/wait-for.ts";

const SHARD: ShardRegistration = {
  kind: "shard",
  rank: 2,
  address: "10.0.0.7:50061",
  adapter: "cpu",
  memoryBytes: 2 ** 40,
  residentBytes: 12_345,
  pairsPerSecond: 1234.5,
  tolerance: 1e-5,
  weights: "auto",
  experts: "int4-g32",
  incarnation: "a",
  draining: false,
  released: false,
  residentExperts: 9,
  epoch: 3,
};

const ROUTER: RouterRegistration = {
  kind: "router",
  id: "r1",
  incarnation: "b",
  httpAddress: "10.0.0.9:8080",
  grpcAddress: "10.0.0.9:50051",
  epoch: 3,
  localBytes: 0,
};

function unexpected(error: unknown): never {
  throw error;
}

describe("a registration", () => {
  it("comes back from its JSON as it was; anything else is none", () => {
    for (const member of [SHARD, ROUTER]) {
      assert.deepEqual(decodeRegistration(encodeRegistration(member)), member);
    }
    for (const json of ["", "{", "[]", '{"kind":"shard"}', '{"kind":"other","rank":1}']) {
      assert.equal(decodeRegistration(json), undefined, json);
    }
    const newer = JSON.stringify({ ...SHARD, later: "field" });
    assert.deepEqual(decodeRegistration(newer), SHARD);
  });
});

describe("members in Redis", () => {
  let server: TestRedis;
  let redis: RedisConnection;
  before(async () => {
    server = await startRedis();
    redis = connectRedis(server.url);
    await redis.ready(5000);
  });
  after(async () => {
    redis.close();
    await server.close();
  });

  it("are read in order, expire, and are gone once withdrawn", async () => {
    const other = { ...SHARD, rank: 0, address: "10.0.0.8:50061", incarnation: "c" };
    for (const member of [SHARD, other, ROUTER]) await announce(redis, "m1", member);
    assert.deepEqual(await readMembers(redis, "m1"), { shards: [other, SHARD], routers: [ROUTER] });
    assert.deepEqual(await readMembers(redis, "m2"), { shards: [], routers: [] });
    const key = membershipKeys("m1").shard(2);
    const [left] = await redis.pipeline([["PTTL", key]]);
    assert.ok(Number(left) > MEMBER_EXPIRY_MS - 1500 && Number(left) <= MEMBER_EXPIRY_MS);
    await redis.pipeline([["PEXPIRE", key, 1]]);
    await waitFor("the registration to expire", async () => {
      const { shards } = await readMembers(redis, "m1");
      return shards.length === 1 && shards[0].rank === other.rank;
    });
    await withdraw(redis, "m1", { ...other, incarnation: "not its own" });
    assert.equal((await readMembers(redis, "m1")).shards.length, 1);
    await withdraw(redis, "m1", other);
    assert.equal((await readMembers(redis, "m1")).shards.length, 0);
  });

  it("of one rank at two addresses are refused with both addresses; one that starts again takes its own place", async () => {
    await announce(redis, "m3", SHARD);
    const second = { ...SHARD, incarnation: "z", address: "10.0.0.8:50061" };
    await assert.rejects(announce(redis, "m3", second), (error) => {
      assert.ok(error instanceof MemberConflictError);
      assert.match(error.message, /rank 2 at 10\.0\.0\.8:50061.*at 10\.0\.0\.7:50061/);
      return true;
    });
    assert.deepEqual((await readMembers(redis, "m3")).shards, [SHARD]);
    const again = { ...SHARD, incarnation: "y" };
    await announce(redis, "m3", again);
    assert.deepEqual((await readMembers(redis, "m3")).shards, [again]);
  });

  it("of one rank: the later one gives up after its patience, the first one stays", async () => {
    await announce(redis, "m4", SHARD);
    const { promise: conflict, resolve } = Promise.withResolvers<MemberConflictError>();
    const heartbeat = startHeartbeat({
      redis,
      modelHash: "m4",
      member: () => ({ ...SHARD, incarnation: "z", address: "10.0.0.8:50061" }),
      onConflict: resolve,
      onError: unexpected,
      intervalMs: 10,
      conflictGraceMs: 50,
    });
    assert.match((await conflict).message, /rank 2/);
    await heartbeat.close();
    assert.deepEqual((await readMembers(redis, "m4")).shards, [SHARD]);
  });

  it("stay registered while they live, follow a restart of Redis, and leave in order", async () => {
    let epoch = 1;
    const heartbeat = startHeartbeat({
      redis,
      modelHash: "m5",
      member: () => ({ ...SHARD, epoch }),
      onConflict: unexpected,
      onError: unexpected,
      intervalMs: 60_000,
    });
    const epochNow = async () => (await readMembers(redis, "m5")).shards[0]?.epoch;
    await waitFor("the registration", async () => (await epochNow()) === 1);
    epoch = 2;
    heartbeat.changed();
    await waitFor("the change", async () => (await epochNow()) === 2);
    await heartbeat.close();
    assert.equal(await epochNow(), undefined);

    const frequent = startHeartbeat({
      redis,
      modelHash: "m5",
      member: () => SHARD,
      onConflict: unexpected,
      onError: unexpected,
      intervalMs: 20,
    });
    await server.restart();
    await redis.ready(5000);
    await waitFor(
      "the registration after the restart",
      async () => (await epochNow()) === SHARD.epoch,
    );
    await frequent.close();
  });
});
