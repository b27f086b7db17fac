import assert from "node:assert/strict";
import { describe, it } from "node:test";

import { waitFor } from "../../../../bench/rig/wait-for.ts";
import type { Placement } from "../../../../core/placement/placement.ts";
import { Changes } from "../../../../router-service/cluster/changes.ts";
import type { MemberView } from "../../../../router-service/cluster/cluster-member.ts";
import { createOwnLease } from "../../../../router-service/cluster/planning/lease.ts";
import { createStaticMembership } from "../../../../router-service/cluster/membership-static.ts";
import { PlacementPublisher } from "../../../../router-service/cluster/planning/placement-publisher.ts";
import { createMemoryStore } from "../../../../router-service/cluster/planning/placement-store.ts";
import { ShardHello, ShardStatus } from "../../../../proto/gen/switchyard/v1/expert.ts";

const placed = (epoch: number, ranks: readonly number[]): Placement => ({
  epoch,
  layers: new Map([[0, ranks.map((rank) => [{ rank, share: 1 }])]]),
});

const memberOf = (rank: number, state: MemberView["state"]): MemberView => ({
  address: `shard-${rank}:1`,
  rank,
  state,
  reason: undefined,
  hello: ShardHello.create({ rank }),
  status: ShardStatus.create({ draining: state === "draining" }),
  epochs: [],
  speed: {} as MemberView["speed"],
  steady: {} as MemberView["steady"],
  suspect: false,
  quarantinedUntil: undefined,
});

/** A move from shards 0 and 1 to 1 and 2 whose loading does not end by itself. */
async function slowMove() {
  const inUse = { placement: placed(1, [0, 1]), weights: "f32", experts: "f32" } as const;
  const away = new Set<number>([3]);
  const draining = new Set<number>();
  const changes = new Changes();
  const store = createMemoryStore();
  const stop = new AbortController();
  let current = inUse.placement;
  let hasChanged = false;
  const stateOf = (rank: number) =>
    away.has(rank) ? "away" : draining.has(rank) ? "draining" : "ready";
  const publisher = new PlacementPublisher({
    store,
    lease: createOwnLease(),
    membership: createStaticMembership([], () => ({
      id: "router",
      epoch: current.epoch,
      localBytes: 0,
    })),
    cluster: {
      current: () => ({ ...inUse, placement: current }),
      members: () => [0, 1, 2, 3].map((rank) => memberOf(rank, stateOf(rank))),
    },
    follower: { look: () => {}, take: () => {}, failure: () => undefined },
    routerId: "router",
    changes,
    signal: stop.signal,
    interrupted: () => hasChanged,
    onPublished: () => {},
    log: { info: () => {}, warn: () => {} },
  });
  const planned = [0, 1, 2].map((rank) => ({ rank, draining: false }));
  const terms = { why: "a test", after: 0 };
  await publisher.publish(inUse, { ...terms, stagesLeft: 0 });
  const { layers } = placed(2, [1, 2]);
  const outcome = publisher.publishStages([layers], inUse, { ...terms, after: 1, planned });
  await waitFor("the stage", async () => (await store.look()).epoch === 2, 2_000);
  const set = (change: () => void) => {
    hasChanged = true;
    change();
    changes.notify();
  };
  return {
    outcome,
    lose: (rank: number) => set(() => away.add(rank)),
    leave: (rank: number) => set(() => draining.add(rank)),
    find: (rank: number) => set(() => away.delete(rank)),
    adopt: () => set(() => (current = placed(2, [1, 2]))),
  };
}

describe("a stage that is being loaded", { timeout: 10_000 }, () => {
  it("gives way to a new plan where a shard is lost that it counts on", async () => {
    const move = await slowMove();
    move.lose(1);
    assert.equal(await move.outcome, "interrupted");
  });

  it("goes on where it has a home for all that the lost shard held, or the shard is back", async () => {
    const [beside, back, lost] = await Promise.all([slowMove(), slowMove(), slowMove()]);
    beside.lose(0);
    back.lose(1);
    lost.lose(1);
    back.find(1);
    // The first two would have given way before.
    assert.equal(await lost.outcome, "interrupted");
    beside.adopt();
    back.adopt();
    assert.deepEqual(await Promise.all([beside.outcome, back.outcome]), ["done", "done"]);
  });

  it("gives way after a second where a shard is to leave or has joined, not where it is loaded by then", async () => {
    const [left, joined, quick] = await Promise.all([slowMove(), slowMove(), slowMove()]);
    left.leave(1);
    joined.find(3);
    quick.leave(2);
    quick.adopt();
    assert.equal(await quick.outcome, "done");
    assert.deepEqual(await Promise.all([left.outcome, joined.outcome]), [
      "interrupted",
      "interrupted",
    ]);
  });
});
