/** Which experts of a placement nobody can compute at the moment; pure but for what members say. */

import type { Placement } from "../../../core/placement/placement.ts";
import type { ClusterMember } from "../cluster-member.ts";

/**
 * Why experts have no living copy, naming the shards that are to have them; undefined where all have one.
 * @param undecided why there is no placement; undefined: that is not known
 */
export function missingExperts(
  placement: Placement | undefined,
  members: readonly ClusterMember[],
  undecided: string | undefined,
): string | undefined {
  if (placement === undefined) return `no placement yet: ${undecided ?? notThere(members)}`;
  const away = awayOf(placement, members);
  return away.length === 0 ? undefined : `experts without a living copy: ${away.join("; ")}`;
}

/** Which members are not there, before anything is known of a placement. */
function notThere(members: readonly ClusterMember[]): string {
  const away = members.filter(({ connected }) => !connected);
  if (away.length === 0) return "nobody has decided it";
  return away.map((one) => `shard ${one.address}: ${one.reasonAgainst(undefined)}`).join("; ");
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
