import assert from "node:assert/strict";
import { after, describe, it } from "node:test";

import { connectRedis, RedisUnavailableError } from "../../../../core/platform/redis.ts";
import {
  createOwnLease,
  createRedisLease,
} from "../../../../router-service/cluster/planning/lease.ts";
import {
  createMemoryStore,
  createRedisStore,
  placementKeys,
  type PlacementStore,
} from "../../../../router-service/cluster/planning/placement-store.ts";
import type { StoredPlacement } from "../../../../router-service/cluster/planning/stored-placement.ts";
import { startRedis } from "../../../../bench/rig/redis.ts";
import { silentLogger } from "../../../support/shards.ts";
import { waitFor } from "../../../../bench/rig/wait-for.ts";

const server = await startRedis();
const connections = [connectRedis(server.url), connectRedis(server.url)] as const;
after(async () => {
  for (const redis of connections) redis.close();
  await server.close();
});
await Promise.all(connections.map((redis) => redis.ready(5_000)));

const HOLD_MS = 800;
const leaseOf = (
  redis: (typeof connections)[number],
  modelHash: string,
  log: Parameters<typeof createRedisLease>[0]["log"] = silentLogger,
) =>
  createRedisLease({
    redis,
    key: placementKeys(modelHash).lease,
    log,
    holdMs: HOLD_MS,
  });

function placementOf(epoch: number, why = "first"): StoredPlacement {
  return {
    placement: { epoch, layers: new Map([[0, [[{ rank: 0, share: 1 }]]]]) },
    weights: "f32",
    experts: "f32",
    plannedBy: "test",
    why,
    at: 1,
    stagesLeft: 0,
  };
}

const STORES: readonly [
  name: string,
  make: () => Promise<{ store: PlacementStore; token: string }>,
][] = [
  [
    "in memory",
    async () => ({ store: createMemoryStore(), token: createOwnLease().token() ?? "" }),
  ],
  [
    "in Redis",
    async () => {
      await connections[0].pipeline([["SET", placementKeys("contract").lease, "mine"]]);
      return { store: createRedisStore(connections[0], "contract"), token: "mine" };
    },
  ],
];

for (const [name, make] of STORES) {
  describe(`a placement store ${name}`, () => {
    it("takes a placement only in the place of the one that its planner has seen", async () => {
      const { store, token } = await make();
      assert.deepEqual(await store.look(), { epoch: 0, unplaceable: undefined });
      assert.equal(await store.read(), undefined);
      assert.equal(await store.publish(placementOf(1), { after: 0, token }), "published");
      assert.equal(await store.publish(placementOf(2, "late"), { after: 0, token }), "outdated");
      assert.deepEqual(await store.read(), placementOf(1));
      assert.equal(await store.publish(placementOf(5), { after: 1, token }), "published");
      await store.setUnplaceable("no room", token);
      assert.deepEqual(await store.look(), { epoch: 5, unplaceable: "no room" });
      await store.setUnplaceable(undefined, token);
      assert.deepEqual(await store.look(), { epoch: 5, unplaceable: undefined });
    });
  });
}

describe("the planner's lease", () => {
  it("is held by one router, and goes to another when it is given up", async () => {
    const first = leaseOf(connections[0], "turns");
    await waitFor("the first", () => first.token() !== undefined);
    const second = leaseOf(connections[1], "turns");
    let led = 0;
    second.onLeading(() => led++);
    const held = first.token();
    // As long as it would hold without being renewed.
    const until = performance.now() + 2 * HOLD_MS;
    await waitFor("renewals", () => {
      assert.equal(second.token(), undefined);
      return performance.now() > until;
    });
    assert.equal(first.token(), held);
    await first.close();
    assert.equal(first.token(), undefined);
    await waitFor("the second", () => second.token() !== undefined);
    assert.equal(led, 1);
    assert.notEqual(second.token(), held);
    await second.close();
  });

  it("ends on the holder's own clock while Redis does not answer, and is taken again after", async () => {
    const lease = leaseOf(connections[0], "outage");
    await waitFor("the lease", () => lease.token() !== undefined);
    const frozenAt = performance.now();
    server.freeze();
    try {
      await waitFor("the end", () => lease.token() === undefined);
      assert.ok(performance.now() - frozenAt < HOLD_MS + 200);
      const store = createRedisStore(connections[0], "outage");
      await assert.rejects(store.look(), RedisUnavailableError);
    } finally {
      server.thaw();
    }
    await waitFor("the lease again", () => lease.token() !== undefined);
    await lease.close();
  });

  it("that Redis refuses again and again is warned of once", async () => {
    const warnings: string[] = [];
    const lease = leaseOf(connections[0], "refused", {
      info: () => undefined,
      warn: (_fields, message) => warnings.push(message),
    });
    await waitFor("the lease", () => lease.token() !== undefined);
    const { lease: key } = placementKeys("refused");
    // Of another type: no script can read it.
    await connections[1].pipeline([
      ["DEL", key],
      ["RPUSH", key, "a list"],
    ]);
    await waitFor("the loss", () => warnings.includes("this router no longer plans"));
    assert.deepEqual(
      warnings.filter((message) => message.startsWith("Redis refuses")),
      ["Redis refuses the planner's lease"],
    );
    await lease.close();
  });

  it("that is won while its router stops is given back", async () => {
    const held = leaseOf(connections[1], "stopping");
    await waitFor("the lease", () => held.token() !== undefined);
    const late = leaseOf(connections[0], "stopping");
    await held.close();
    late.campaign();
    await late.close();
    const [left] = await connections[1].pipeline([["GET", placementKeys("stopping").lease]]);
    assert.equal(left, null);
  });

  it("that is lost publishes nothing, even for a holder that believes in it", async () => {
    const lease = leaseOf(connections[0], "fence");
    await waitFor("the lease", () => lease.token() !== undefined);
    const store = createRedisStore(connections[0], "fence");
    const token = lease.token() ?? "";
    assert.equal(await store.publish(placementOf(1), { after: 0, token }), "published");
    await connections[1].pipeline([["SET", placementKeys("fence").lease, "another"]]);
    assert.equal(await store.publish(placementOf(2), { after: 1, token }), "not leading");
    await store.setUnplaceable("no room", token);
    await waitFor("the loss", () => lease.token() === undefined);
    assert.deepEqual(await store.look(), { epoch: 1, unplaceable: undefined });
    await lease.close();
    const [kept] = await connections[1].pipeline([["GET", placementKeys("fence").lease]]);
    assert.equal(String(kept), "another", "a lease of another's is not released");
  });
});
