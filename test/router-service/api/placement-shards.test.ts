import assert from "node:assert/strict";
import { test } from "node:test";

import { LOCAL_RANK } from "../../../core/placement/placement.ts";
import { lostView, shardRows, shownRanks } from "../../../router-service/api/placement-shards.ts";
import type { MemberView } from "../../../router-service/cluster/cluster-member.ts";
import { assess } from "../../../router-service/cluster/planning/assessment.ts";
import { plannerInput } from "../../core/placement/inputs.ts";

const NOW = Date.parse("2026-01-01T00:00:00Z");
const on = (...ranks: readonly number[]) =>
  ranks.map((rank) => ({ rank, share: 1 / ranks.length }));

/** A shard as the router knows it; what is not read here is left out. */
function member(rank: number, more: Partial<MemberView> = {}): MemberView {
  const hello = { rank, memoryBytes: 2 } as MemberView["hello"];
  const known = { address: `host:${rank}`, state: "ready", reason: undefined } as const;
  return { ...known, rank, hello, quarantinedUntil: undefined, ...more } as MemberView;
}

function rowsOf(placed: Parameters<typeof assess>[1], members: readonly MemberView[]) {
  const input = plannerInput({ loads: [[1, 1, 1]], room: [2] });
  const judged = { now: NOW, worth: assess(input, placed) };
  const rows = shardRows(shownRanks(placed, judged.worth), placed, members, judged) as {
    rank: number | "local";
    state: string;
    reason: string | null;
    experts: number;
    address: string | null;
    seconds_per_step: number | null;
  }[];
  return { rows, lost: lostView(placed, members, { ...judged, reason: "said" }) };
}

test("shards with copies that are away, wrong or unknown have their rows in the order of ranks, with the reason", () => {
  const placed = new Map([[0, [on(0, 1), on(0, 2, 3), on(LOCAL_RANK)]]]);
  const members = [
    member(0),
    // An address that rank 1 had before is still named.
    member(1, { address: "old:1", state: "away", reason: "refused" }),
    member(2, { quarantinedUntil: NOW + 2_000 }),
    member(LOCAL_RANK),
  ];
  const { rows } = rowsOf(placed, members);
  assert.deepEqual(
    rows.map(({ rank, state, experts, reason }) => [rank, state, experts, reason]),
    [
      [0, "ready", 2, null],
      [1, "away", 1, "refused"],
      [2, "quarantined", 1, "its sums were wrong: no rows until 2026-01-01T00:00:02.000Z"],
      [3, "away", 1, "no shard has this rank"],
      ["local", "ready", 1, null],
    ],
  );
  const back = rowsOf(placed, [...members, member(1, { state: "loading" })]);
  assert.deepEqual([back.rows[1].state, back.rows[1].address], ["loading", "host:1"]);
});

test("experts are lost whose copies are all with shards that are away, and no time is expected of any then", () => {
  const placed = new Map([[0, [on(0), on(0, 1), on(1)]]]);
  const there = rowsOf(placed, [member(0), member(1)]);
  assert.equal(there.lost, null);
  const { lost, rows } = rowsOf(placed, [member(0), member(1, { state: "away" })]);
  assert.deepEqual(lost, { experts: 1, experts_without_room: 1, reason: "said" });
  assert.deepEqual(
    rows.map(({ seconds_per_step }) => seconds_per_step),
    [null, null],
  );
  // One that comes back has nothing yet.
  assert.ok(rowsOf(placed, [member(0), member(1, { state: "loading" })]).lost !== null);
});
