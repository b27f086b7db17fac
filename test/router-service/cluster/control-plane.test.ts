import assert from "node:assert/strict";
import { after, before, describe, it, type TestContext } from "node:test";

import { startHeartbeat, type Heartbeat } from "../../../core/heartbeat.ts";
import { openCheckpoint, type Checkpoint } from "../../../core/model/checkpoint.ts";
import { moeLayers } from "../../../core/model/config.ts";
import { ranksOf } from "../../../core/placement/placement.ts";
import { connectRedis, type RedisConnection } from "../../../core/platform/redis.ts";
import { createStatistics } from "../../../core/statistics/store.ts";
import type { Cluster } from "../../../router-service/cluster/cluster.ts";
import { startControlPlane, type ControlPlane } from "../../../router-service/control-plane.ts";
import { TINY_MODEL } from "../../../bench/rig/cluster.ts";
import { testValues } from "../../../bench/rig/expert-reference.ts";
import { startRedis, type TestRedis } from "../../../bench/rig/redis.ts";
import { hostStep, testRouting } from "../../support/run-experts-contract.ts";
import {
  connectTestCluster,
  silentLogger,
  startTestShard,
  type TestShard,
} from "../../support/shards.ts";
import { waitFor } from "../../../bench/rig/wait-for.ts";

let checkpoint: Checkpoint;
before(async () => {
  checkpoint = await openCheckpoint(TINY_MODEL);
});
after(() => checkpoint.close());

interface TestRouter {
  readonly cluster: Cluster;
  readonly plane: ControlPlane;
  close(): Promise<void>;
}

async function startRouter(
  routerId: string,
  options: {
    readonly redisUrl?: string;
    readonly shards?: readonly string[];
    readonly minShards?: number;
    readonly minCopies?: number;
  },
): Promise<TestRouter> {
  const { config, modelHash, overlay, storedExperts } = checkpoint;
  const { redisUrl, shards = [], minShards = 1, minCopies = 1 } = options;
  const shape = {
    modelName: "tiny",
    layers: moeLayers(config),
    numExperts: config.numExperts,
    topK: config.numExpertsPerToken,
  };
  const statistics = createStatistics({ ...shape, modelHash, ...(redisUrl && { redisUrl }) });
  const cluster = await connectTestCluster(shards, {
    routerId,
    plansFirst: redisUrl === undefined,
  });
  const plane = startControlPlane({
    settings: {
      redisUrl,
      discover: shards.length === 0,
      minShards,
      shards: [...shards],
      planInterval: 0,
      minCopies,
      placementPolicy: "auto",
      localExperts: 0,
      wire: "f32",
      host: "127.0.0.1",
    },
    checkpoint,
    shape,
    statistics,
    queued: () => [],
    cluster,
    routerId,
    first: { config, weights: "f32", shaderF16: false, experts: "auto", storedExperts, overlay },
    httpPort: 1,
    grpcPort: 2,
    logger: silentLogger,
  });
  return {
    cluster,
    plane,
    close: async () => {
      await plane.close();
      await cluster.close();
      await statistics.close();
    },
  };
}

const epochOf = ({ cluster }: TestRouter) => cluster.current()?.placement.epoch ?? 0;
const holders = ({ cluster }: TestRouter) => {
  const placement = cluster.current()?.placement;
  return placement === undefined ? [] : ranksOf(placement);
};
const isLeading = ({ plane }: TestRouter) => plane.planner.state().leading;

/** Sums of the routed experts of layer 0 for three fixed rows. */
async function run({ cluster }: TestRouter): Promise<Float32Array> {
  const routing = testRouting(3, 4, (token, k) => (token + k * 3) % 12);
  const step = hostStep(testValues(3 * 64, 1), routing, new AbortController().signal);
  const sums = await cluster.runExperts(0, step.hiddenStates, step.routing);
  assert.ok(sums.kind === "host");
  return sums.values;
}

/** Fails unless the sums are the same but for the order in which shards' parts are added. */
async function assertComputes(router: TestRouter, expected: Float32Array): Promise<void> {
  const sums = await run(router);
  assert.equal(sums.length, expected.length);
  for (const [i, sum] of sums.entries()) {
    assert.ok(Math.abs(sum - expected[i]) < 1e-5, `${i}: ${sum}, expected ${expected[i]}`);
  }
}

/** Waits until both routers work by one epoch that places experts on just these ranks. */
async function settled(routers: readonly TestRouter[], ranks: readonly number[]): Promise<number> {
  await waitFor(
    `experts on ${ranks.join()}`,
    () => {
      const epochs = new Set(routers.map(epochOf));
      return epochs.size === 1 && routers.every((one) => holders(one).join() === ranks.join());
    },
    15_000,
  );
  return epochOf(routers[0]);
}

describe("two routers and their Redis", () => {
  let server: TestRedis;
  let redis: RedisConnection;
  const shards = new Map<number, { readonly shard: TestShard; readonly heartbeat: Heartbeat }>();
  let routers: TestRouter[] = [];
  let expected: Float32Array;

  const addShard = async (rank: number, memoryLimit?: number) => {
    const shard = await startTestShard({ rank, weights: "f32", memoryLimit });
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
    const options = { redisUrl: server.url, minShards: 2 };
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
    expected = await run(routers[0]);
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

  it("refuse requests, the one that follows too, where no shard that is left has room", async () => {
    routers.push(await startRouter("three", { redisUrl: server.url }));
    const [, follower] = routers;
    await addShard(4, 200_000);
    await waitFor(
      "the follower",
      () => epochOf(follower) > 0 && epochOf(follower) === epochOf(routers[0]),
      15_000,
    );
    await follower.cluster.ready();
    const refused = assert.rejects(async () => {
      for (;;) await run(follower);
    }, /experts take \d+ bytes; 1 shards offer 200000 bytes/);
    await Promise.all([removeShard(2), removeShard(3)]);
    await refused;
    assert.ok(!isLeading(follower));
  });
});

describe("a router without Redis", () => {
  const start = async (t: TestContext, ranks: readonly number[], minCopies = 1) => {
    const shards = await Promise.all(ranks.map((rank) => startTestShard({ rank, weights: "f32" })));
    const router = await startRouter("alone", {
      shards: shards.map(({ address }) => address),
      minCopies,
    });
    t.after(async () => {
      await router.close();
      await Promise.all(shards.map((shard) => shard.close()));
    });
    await router.cluster.ready();
    return { shards, router };
  };

  it("plans for itself: what a lost shard held gets another home", async (t) => {
    const { shards, router } = await start(t, [0, 1, 2]);
    const expected = await run(router);
    await shards[1].close();
    await settled([router], [0, 2]);
    await router.cluster.ready();
    await assertComputes(router, expected);
    assert.match(router.plane.follower.stored()?.why ?? "", /shard 1 is gone/);
  });

  it("keeps as many copies as are asked for", async (t) => {
    const { router } = await start(t, [0, 1, 2], 2);
    await waitFor("second copies", () =>
      [...(router.cluster.current()?.placement.layers.values() ?? [])].every((replicas) =>
        replicas.every((copies) => copies.length >= 2),
      ),
    );
    assert.match(
      router.plane.follower.stored()?.why ?? "",
      /fewer copies than are asked for, 0 will/,
    );
  });
});
