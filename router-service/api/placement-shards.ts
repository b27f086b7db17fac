/** The shards of a placement as GET /v1/placement has them: what each holds, what its loss would take, and what is lost. Pure. */

import { rankName, ranksOf } from "../../core/placement/placement.ts";
import type { PlacedLayers, ShardBalance } from "../../core/placement/planner.ts";
import type { MemberView } from "../cluster/cluster-member.ts";
import type { Assessment, ShardLoss } from "../cluster/planning/assessment.ts";
import { needOf } from "../cluster/planning/plan-decision.ts";
import { isServing } from "../cluster/planning/placement-outlook.ts";

/** What the shards are judged by. */
export interface Judged {
  /** Unix milliseconds. */
  readonly now: number;
  /** Undefined where the statistics can not be read. */
  readonly worth: Assessment | undefined;
}

/** Noticing that a shard is gone for good, and the plan for it, seconds. */
const NOTICE_SECONDS = 0.7;

/**
 * Experts that nobody can compute at the moment; null where there are none. `experts_without_room`: of them, those that
 * none of the shards that are there has room for, null where that is not known; `reason` names the shards that are to have them.
 */
export function lostView(
  layers: PlacedLayers,
  members: readonly MemberView[],
  { now, worth, reason }: Judged & { readonly reason: string | undefined },
): object | null {
  const serving = members.filter((member) => isServing(member, now));
  const there = serving.map(({ rank = 0 }) => ({ rank, draining: false }));
  const { homeless: experts } = needOf(layers, there, 1);
  if (experts === 0) return null;
  return {
    experts,
    experts_without_room: worth?.missing.homeless ?? null,
    reason: reason ?? null,
  };
}

/** Ranks of the shards that are shown, ascending: those that a placement is judged with, and all that it gives experts to. */
export function shownRanks(layers: PlacedLayers, worth: Assessment | undefined): number[] {
  const ranks = new Set(ranksOf({ epoch: 0, layers }));
  for (const { rank } of worth?.shards ?? []) ranks.add(rank);
  return [...ranks].sort((a, b) => a - b);
}

/**
 * A row for each of `ranks`. One that the placement is not judged with is away, or in quarantine. Times are null where a
 * shard is away or experts have no copy.
 */
export function shardRows(
  ranks: readonly number[],
  layers: PlacedLayers,
  members: readonly MemberView[],
  { now, worth }: Judged,
): object[] {
  const isExpected = worth?.stepSeconds !== undefined;
  return ranks.map((rank) => {
    const member = memberOf(members, rank);
    const balance = worth?.shards.find((one) => one.rank === rank);
    if (balance === undefined) return awayRow(rank, layers, member, now);
    const loss = worth?.losses.find((one) => one.rank === rank);
    return Object.assign(balanceView(balance), {
      pairs_per_step: isExpected ? balance.pairs : null,
      seconds_per_step: isExpected ? balance.seconds : null,
      address: member?.address ?? null,
      state: member?.state ?? "ready",
      reason: member?.reason ?? null,
      loss: loss === undefined ? null : lossView(loss),
    });
  });
}

/** A shard that no step is expected of. */
function awayRow(
  rank: number,
  layers: PlacedLayers,
  member: MemberView | undefined,
  now: number,
): object {
  const { quarantinedUntil = 0 } = member ?? {};
  const isWrong = quarantinedUntil > now;
  const until = new Date(quarantinedUntil).toISOString();
  return {
    rank: rankName(rank),
    experts: copiesOn(layers, rank),
    bytes: null,
    memory_bytes: member?.hello?.memoryBytes ?? null,
    pairs_per_step: null,
    seconds_per_step: null,
    address: member?.address ?? null,
    state: isWrong ? "quarantined" : (member?.state ?? "away"),
    reason: isWrong ? `its sums were wrong: no rows until ${until}` : reasonOf(member),
    loss: null,
  };
}

function reasonOf(member: MemberView | undefined): string | null {
  return member === undefined ? "no shard has this rank" : (member.reason ?? null);
}

/** The member with this rank: the one that is there, where another had it before. */
function memberOf(members: readonly MemberView[], rank: number): MemberView | undefined {
  const those = members.filter((member) => member.rank === rank);
  return those.find(({ state }) => state !== "away") ?? those[0];
}

/** Copies of a rank over all layers. */
function copiesOn(layers: PlacedLayers, rank: number): number {
  let count = 0;
  for (const replicas of layers.values()) {
    for (const copies of replicas) if (copies.some((copy) => copy.rank === rank)) count++;
  }
  return count;
}

/** `seconds`: until requests that wait for those experts go on; null: some never do. */
function lossView({ experts, bytes, loadSeconds, homeless }: ShardLoss): object {
  return {
    experts_without_copy: experts,
    bytes,
    seconds: homeless > 0 ? null : experts === 0 ? 0 : NOTICE_SECONDS + loadSeconds,
    experts_without_room: homeless,
  };
}

/** What a placement asks of a shard. */
export function balanceView({ rank, experts, bytes, memoryBytes, pairs, seconds }: ShardBalance) {
  return {
    rank: rankName(rank),
    experts,
    bytes,
    memory_bytes: memoryBytes,
    pairs_per_step: pairs,
    seconds_per_step: seconds,
  };
}
