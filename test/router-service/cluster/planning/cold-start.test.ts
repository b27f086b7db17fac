import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";

import { TINY_MODEL } from "../../../../bench/rig/cluster.ts";
import { openCheckpoint } from "../../../../core/model/checkpoint/checkpoint.ts";
import { LOCAL_RANK } from "../../../../core/placement/placement.ts";
import { ShardHello } from "../../../../proto/gen/switchyard/v1/expert.ts";
import type { MemberView } from "../../../../router-service/cluster/cluster-member.ts";
import {
  ColdStart,
  type FirstMoment,
  type FirstPlanOptions,
  planFirst,
} from "../../../../router-service/cluster/planning/cold-start.ts";
import { EXPERT_BYTES } from "../../../support/tiny-experts.ts";

/** Experts of the tiny model over all of its layers. */
const NUM_EXPERTS = 36;

function member(rank: number, memoryBytes: number, others: Partial<MemberView> = {}): MemberView {
  return {
    address: rank === LOCAL_RANK ? "local" : `shard-${rank}:1`,
    rank,
    state: "ready",
    reason: undefined,
    hello: ShardHello.fromPartial({ rank, weights: "f32", experts: "auto", memoryBytes }),
    status: undefined,
    epochs: [],
    speed: {} as MemberView["speed"],
    steady: {} as MemberView["steady"],
    suspect: false,
    quarantinedUntil: undefined,
    ...others,
  };
}

const away = (rank: number, reason: string) =>
  member(rank, 0, { rank: undefined, hello: undefined, state: "away", reason });

const MEMBERSHIP: FirstPlanOptions["membership"] = {
  routers: () => [{ id: "one", epoch: 0, localBytes: 5 * EXPERT_BYTES }],
  seen: () => true,
};

describe("the first placement", () => {
  let first: FirstPlanOptions["first"];
  before(async () => {
    const checkpoint = await openCheckpoint(TINY_MODEL);
    after(() => checkpoint.close());
    const { config, storedExperts, overlay } = checkpoint;
    const flags = { weights: "f32", experts: "auto", shaderF16: false } as const;
    first = { ...flags, config, storedExperts, overlay };
  });

  const plan = (
    members: readonly MemberView[],
    options: Partial<Omit<FirstPlanOptions, "cluster" | "first">> = {},
    moment: Partial<FirstMoment> = {},
  ) =>
    planFirst(
      {
        cluster: { members: () => [...members] },
        membership: MEMBERSHIP,
        first,
        minShards: 2,
        patienceMs: 10_000,
        minCopies: 1,
        ...options,
      },
      { wallMs: 1_000_000, waitedMs: 0, alone: false, ...moment },
    );
  const copiesOf = (made: ReturnType<typeof plan>) =>
    [...(made.placed?.placement.layers.values() ?? [])].flat();
  const heldBy = (made: ReturnType<typeof plan>, rank: number) =>
    copiesOf(made).filter((copies) => copies.some((copy) => copy.rank === rank)).length;

  const ALL = NUM_EXPERTS * EXPERT_BYTES;
  const other = away(1, "model_hash: the router has a, the shard has b");

  it("waits for every shard of a list as long as patience goes, and names those that it waits for", () => {
    const { placed, decision, unplaceable } = plan(
      [member(0, ALL), other],
      {},
      { waitedMs: 9_999 },
    );
    assert.equal(placed, undefined);
    assert.equal(unplaceable, undefined);
    assert.equal(decision, `1 of 2 shards can be used; shard shard-1:1: ${other.reason}`);
  });

  it("then goes without those that can not be used, and names them", () => {
    const leaving = { draining: true } as MemberView["status"];
    const wrong = member(3, ALL, { quarantinedUntil: 1_000_001 });
    const members = [member(0, ALL), other, member(2, ALL, { status: leaving }), wrong];
    const made = plan(members, { minShards: 4 }, { waitedMs: 10_000 });
    assert.equal(heldBy(made, 0), NUM_EXPERTS);
    const without = `shard shard-1:1: ${other.reason}; shard shard-2:1: it is to leave; shard shard-3:1: it is in quarantine`;
    assert.equal(made.without, without);
    assert.equal(made.decision, `the first placement, on 1 shard; without ${without}`);
  });

  it("never goes without a shard where nobody else hears of it, or shards are not listed, or none is there", () => {
    const waitedMs = 1e9;
    assert.equal(plan([member(0, ALL), other], {}, { waitedMs, alone: true }).placed, undefined);
    const found = plan([member(0, ALL)], { patienceMs: Infinity }, { waitedMs });
    assert.equal(found.decision, "1 of 2 shards can be used");
    assert.equal(plan([other, other], { patienceMs: 0 }).placed, undefined);
  });

  it("says what is needed and offered where there is too little room, and who is not there", () => {
    const { unplaceable } = plan([member(0, 100_000), other], {}, { waitedMs: 10_000 });
    assert.match(
      unplaceable ?? "",
      /take 1105920 bytes .*; 1 shard offers 100000 bytes.*; shard shard-1:1: /,
    );
    const { decision } = plan([member(0, 100_000), member(1, 100_000)]);
    assert.match(decision, /take 1105920 bytes .*; 2 shards offer 100000 \+ 100000 bytes/);
  });

  it("says that no shard of the model is registered, and which others are", () => {
    const others = () => [
      { modelHash: "00aa", numShards: 2 },
      { modelHash: "00bb", numShards: 1 },
    ];
    const decisionOf = (membership: Partial<FirstPlanOptions["membership"]>) =>
      plan([member(LOCAL_RANK, 1)], { membership: { ...MEMBERSHIP, ...membership } }).decision;
    assert.equal(decisionOf({}), "no shard of this model is registered in Redis");
    assert.match(
      decisionOf({ others }),
      /no shard of this .* in Redis, but 2 shards of the model 00aa, 1 shard of the model 00bb$/,
    );
    assert.equal(decisionOf({ seen: () => false }), "Redis does not answer");
  });

  it("is said to be missing after 5 s once, and again where it is for another reason", () => {
    const warnings: unknown[] = [];
    let undecided = "";
    let members: readonly MemberView[] = [];
    const cold = new ColdStart({
      cluster: { members: () => [...members], setUndecided: (reason) => (undecided = reason) },
      membership: MEMBERSHIP,
      store: { isAway: () => false },
      log: { warn: (fields: unknown) => void warnings.push(fields) },
      first,
      minShards: 2,
      patienceMs: 10_000,
      minCopies: 1,
    });
    const look = (nowMs: number) => cold.look("leads", nowMs, 0).decision;
    const nobody = look(100);
    assert.equal(undecided, nobody);
    look(5_099);
    assert.deepEqual(warnings, []);
    look(5_100);
    look(6_000);
    assert.deepEqual(warnings, [{ reason: nobody }]);
    members = [member(0, ALL), other];
    const one = look(7_000);
    look(16_999);
    assert.deepEqual(warnings.slice(1), [{ reason: one }]);
    assert.match(look(17_000), /^the first placement, on 1 shard; without shard shard-1:1/);
    assert.equal(warnings.length, 3);
    const waits = cold.look("waits", 18_000, 0);
    assert.equal(waits.placed, undefined);
    assert.equal(undecided, "another router is to decide it");
  });

  it("names no more shards than can be read", () => {
    const many = Array.from({ length: 300 }, (_, rank) => away(rank, "no"));
    const { decision } = plan(many, { minShards: 300 });
    assert.match(decision, /^0 of 300 shards can be used; .*shard shard-7:1: no; and 292 more$/);
  });

  it("has as many copies of each expert as are asked for, each on another shard", () => {
    const made = plan(
      [0, 1, 2].map((rank) => member(rank, ALL)),
      { minCopies: 2 },
    );
    for (const copies of copiesOf(made)) {
      assert.equal(new Set(copies.map(({ rank }) => rank)).size, 2);
      const shares = copies.map(({ share }) => share);
      assert.deepEqual([Math.min(...shares), Math.max(...shares)], [0, 1]);
    }
  });

  it("has no more copies than there is memory for, the routers' own last", () => {
    const half = (NUM_EXPERTS / 2) * EXPERT_BYTES;
    const members = [member(0, half), member(1, half + 3 * EXPERT_BYTES), member(LOCAL_RANK, 1)];
    const once = plan(members, { minCopies: 1 });
    assert.equal(heldBy(once, LOCAL_RANK), 0);
    const twice = plan(members, { minCopies: 2 });
    assert.equal(copiesOf(twice).filter((copies) => copies.length === 2).length, 3 + 5);
    assert.equal(heldBy(twice, LOCAL_RANK), 5);
  });
});
