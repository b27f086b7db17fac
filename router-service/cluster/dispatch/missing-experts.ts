/** Which experts of a placement nobody can compute at the moment; pure but for what members say. */

import type { Placement } from "../../../core/placement/placement.ts";
import type { ClusterMember } from "../cluster-member.ts";

/** Why experts have no living copy, naming the shards that are to have them; undefined where all have one. */
export function missingExperts(
  placement: Placement | undefined,
  members: readonly ClusterMember[],
): string | undefined {
  const away =
    placement === undefined
      ? members.flatMap((one) =>
          one.connected ? [] : [`shard ${one.address}: ${one.reasonAgainst(undefined)}`],
        )
      : awayOf(placement, members);
  if (away?.length === 0 && placement !== undefined) return undefined;
  // A list of shards is never empty.
  const nobody =
    members.length === 0
      ? "no shard is registered in Redis, or it is not reached"
      : "no placement is decided";
  const why = away.length === 0 ? nobody : away.join("; ");
  return `experts without a living copy: ${why}`;
}

/** The ranks that hold experts which no living copy has, each with its reason. */
function awayOf(placement: Placement, members: readonly ClusterMember[]): string[] {
  const { epoch } = placement;
  const alive = livingRanks(members, epoch);
  const missing = new Set<number>();
  const seen = new Set<unknown>();
  for (const replicas of placement.layers.values()) {
    // Layers of the first placement share one list.
    if (seen.has(replicas)) continue;
    seen.add(replicas);
    for (const copies of replicas) {
      if (copies.some(({ rank }) => alive.has(rank))) continue;
      for (const { rank } of copies) missing.add(rank);
    }
  }
  return [...missing].map((rank) => {
    const member = members.find((one) => one.rank === rank);
    return member === undefined
      ? `rank ${rank}: no shard has it`
      : `shard ${member.address}: ${member.reasonAgainst(epoch)}`;
  });
}

/** Ranks of the shards to which rows of an epoch may be sent. */
export function livingRanks(members: readonly ClusterMember[], epoch: number): Set<number> {
  const ranks = new Set<number>();
  for (const member of members) {
    if (member.rank !== undefined && member.serves(epoch)) ranks.add(member.rank);
  }
  return ranks;
}
