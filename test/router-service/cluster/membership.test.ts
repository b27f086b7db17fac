import assert from "node:assert/strict";
import { after, test, type TestContext } from "node:test";

import {
  announce,
  type RouterRegistration,
  type RouterSight,
  type ShardRegistration,
  withdraw,
} from "../../../core/membership.ts";
import { connectRedis } from "../../../core/platform/redis.ts";
import {
  createRedisMembership,
  type RedisMembershipOptions,
} from "../../../router-service/cluster/membership-redis.ts";
import {
  createStaticMembership,
  type Membership,
  sharedLocalBytes,
} from "../../../router-service/cluster/membership-static.ts";
import { startRedis } from "../../../bench/rig/redis.ts";
import { silentLogger } from "../../support/shards.ts";
import { waitFor } from "../../../bench/rig/wait-for.ts";

const server = await startRedis();
const redis = connectRedis(server.url);
after(async () => {
  redis.close();
  await server.close();
});
await redis.ready(5_000);

/** The registration of a shard that listens on this port. */
function shardOf(rank: number, port: number): ShardRegistration {
  return {
    kind: "shard",
    rank,
    address: `127.0.0.1:${port}`,
    adapter: "cpu",
    memoryBytes: 1000,
    residentBytes: 0,
    pairsPerSecond: 0,
    tolerance: 0,
    weights: "auto",
    experts: "auto",
    incarnation: `shard ${rank} at ${port}`,
    draining: false,
    released: false,
    residentExperts: 0,
    epoch: 0,
  };
}

function membershipOf(
  t: TestContext,
  modelHash: string,
  id: string,
  options: Partial<RedisMembershipOptions> & {
    readonly epoch?: () => number;
    readonly sight?: () => RouterSight;
  } = {},
): Membership {
  const { epoch = () => 0, sight, ...others } = options;
  const self = (): RouterRegistration => ({
    kind: "router",
    id,
    incarnation: id,
    httpAddress: `127.0.0.1:${id.length}`,
    grpcAddress: "127.0.0.1:1",
    epoch: epoch(),
    localBytes: 7,
    sight: sight?.(),
  });
  const membership = createRedisMembership({
    redis,
    modelHash,
    self,
    log: silentLogger,
    pollMs: 20,
    ...others,
  });
  t.after(() => membership.close());
  return membership;
}

test("a list of shards stays as it is, and its router is alone", () => {
  const membership = createStaticMembership(["a:1", "b:2"], () => ({
    id: "me",
    epoch: 3,
    localBytes: 0,
  }));
  assert.deepEqual(membership.shards(), ["a:1", "b:2"]);
  assert.deepEqual(membership.routers(), [{ id: "me", epoch: 3, localBytes: 0 }]);
});

test("all routers that work by a placement share the memory of their devices, before the first all that are there", () => {
  const shared = (...routers: readonly (readonly [epoch: number, localBytes: number])[]) =>
    sharedLocalBytes({
      routers: () => routers.map(([epoch, localBytes], id) => ({ id: `${id}`, epoch, localBytes })),
    });
  assert.equal(shared([0, 5], [0, 3]), 3);
  assert.equal(shared([4, 5], [0, 3]), 5, "one that joins may still have more than it says");
  assert.equal(shared([4, 5], [3, 2], [0, 1]), 2);
});

test("shards that register are found by rank, and one that withdraws is gone at once", async (t) => {
  // One that is merely not found is forgotten after 2.4 s.
  const membership = membershipOf(t, "found", "one", { pollMs: 200 });
  let changes = 0;
  membership.onChange(() => changes++);
  await announce(redis, "found", shardOf(7, 107));
  await announce(redis, "found", shardOf(2, 102));
  const both = ["127.0.0.1:102", "127.0.0.1:107"];
  await waitFor("both shards", () => membership.shards().length === 2);
  assert.deepEqual(membership.shards(), both);
  assert.ok(changes > 0);
  await withdraw(redis, "found", shardOf(2, 102));
  await waitFor("the end of one", () => membership.shards().length === 1, 1_500);
  assert.deepEqual(membership.shards(), ["127.0.0.1:107"]);
});

test("routers see which epoch the others use as soon as they say so", async (t) => {
  let epoch = 0;
  const first = membershipOf(t, "epochs", "first", { epoch: () => epoch });
  const second = membershipOf(t, "epochs", "another");
  const seen = () => second.routers().find(({ id }) => id === "first")?.epoch;
  await waitFor("the first router", () => seen() === 0);
  epoch = 4;
  first.announce();
  // Sooner than its next heartbeat.
  await waitFor("its epoch", () => seen() === 4, 900);
  assert.deepEqual(first.routers()[0], { id: "first", epoch: 4, localBytes: 7 });
  await first.close();
  await waitFor("its end", () => second.routers().length === 1);
});

test("routers hear what the others measured, and nothing is done anew for that", async (t) => {
  let samples = 0;
  const sight = () => ({ tokensPerSecond: 5, shards: [{ rank: 1, samples, spread: 0 }] });
  const first = membershipOf(t, "sights", "first", { sight });
  const second = membershipOf(t, "sights", "another");
  const heard = () => second.routers().find(({ id }) => id === "first")?.sight;
  await waitFor("the first router", () => heard() !== undefined);
  let changes = 0;
  second.onChange(() => changes++);
  samples = 9;
  first.announce();
  await waitFor("its measurements", () => heard()?.shards[0].samples === 9, 900);
  assert.equal(changes, 0);
});

test("while a router finds no shard of its model, it knows of those of others", async (t) => {
  await announce(redis, "another", shardOf(0, 200));
  await announce(redis, "another", shardOf(1, 201));
  const membership = membershipOf(t, "this one", "one");
  const others = () => membership.others?.() ?? [];
  await waitFor("the others", () => others().some(({ modelHash }) => modelHash === "another"));
  assert.equal(others().find(({ modelHash }) => modelHash === "another")?.numShards, 2);
  await announce(redis, "this one", shardOf(0, 202));
  await waitFor("its own", () => membership.shards().length === 1);
  assert.deepEqual(others(), []);
});

test("shards of a list stay what they are, whoever registers", async (t) => {
  const membership = membershipOf(t, "listed", "one", { shards: ["c:3"] });
  await announce(redis, "listed", shardOf(0, 100));
  membershipOf(t, "listed", "other");
  await waitFor("a look", () => membership.routers().length === 2);
  assert.deepEqual(membership.shards(), ["c:3"]);
});

test("members last seen stay while Redis is away, and when it comes back empty", async (t) => {
  const membership = membershipOf(t, "outage", "one");
  await announce(redis, "outage", shardOf(0, 100));
  await waitFor("the shard", () => membership.shards().length === 1);
  const other = await startRedis();
  t.after(() => other.close());
  const lost = connectRedis(other.url);
  t.after(() => lost.close());
  await lost.ready(5_000);
  const watching = membershipOf(t, "outage", "two", { redis: lost, pollMs: 100 });
  await announce(lost, "outage", shardOf(0, 100));
  await waitFor("the shard", () => watching.shards().length === 1);
  await other.restart();
  await waitFor("the connection", () => lost.isReady());
  assert.deepEqual(watching.shards(), ["127.0.0.1:100"]);
  // Its router registers again: looks have found Redis without the shard.
  await waitFor("looks", async () => {
    const [found] = await lost.pipeline([["EXISTS", "switchyard:v1:{outage}:router:two"]]);
    return found === 1;
  });
  assert.deepEqual(watching.shards(), ["127.0.0.1:100"]);
  await announce(lost, "outage", shardOf(0, 100));
  assert.deepEqual(watching.shards(), ["127.0.0.1:100"]);
});
