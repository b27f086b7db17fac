/** Brings the shards of a cluster from one placement to the next. */

import { errorMessage } from "../../core/error-message.ts";
import { type Placement, ranksOf } from "../../core/placement/placement.ts";
import type { ShardPlacement } from "../../proto/gen/switchyard/v1/cluster.ts";
import { type Changes, changeOrAbort } from "./changes.ts";
import { PlacementError } from "./errors.ts";
import type { ClusterMember } from "./cluster-member.ts";
import { livingRanks } from "./dispatch/missing-experts.ts";
import type { ClusterPlacement } from "./planning/first-placement.ts";

/** What an adoption needs. */
export interface Adoption {
  readonly stored: ClusterPlacement;
  /** What the cluster works by meanwhile; undefined for the first. */
  readonly before: ClusterPlacement | undefined;
  readonly members: () => readonly ClusterMember[];
  /** What the shard of a rank is told. */
  readonly message: (rank: number) => ShardPlacement;
  readonly changes: Changes;
  readonly signal: AbortSignal;
}

/** Checks that a cluster can go from one placement to another. Throws PlacementError naming what does not fit. */
export function switchTo(from: ClusterPlacement | undefined, to: ClusterPlacement): void {
  if (from === undefined) return;
  const { epoch } = from.placement;
  if (to.placement.epoch < epoch) {
    throw new PlacementError(`placement: epoch ${to.placement.epoch}, the router is at ${epoch}`);
  }
  for (const field of ["weights", "experts"] as const) {
    if (to[field] === from[field]) continue;
    throw new PlacementError(`placement: ${field} ${to[field]}, the router has ${from[field]}`);
  }
}

/**
 * Settles when the shards that are there hold what the placement says.
 * Rejects with PlacementError where one that was asked does not get there, or an expert would lose its last living copy;
 * with the signal's reason where that aborts.
 */
export async function adopt(adoption: Adoption): Promise<void> {
  const { stored, before, members, changes, signal } = adoption;
  const { placement } = stored;
  const { epoch } = placement;
  const holders = new Set(ranksOf(placement));
  const failures: PlacementError[] = [];
  const asked = new Set<ClusterMember>();
  const ask = () => {
    for (const member of members()) {
      if (!member.connected || member.rank === undefined || asked.has(member)) continue;
      asked.add(member);
      const { address, rank } = member;
      member.place(adoption.message(rank)).catch((error: unknown) => {
        if (!holders.has(rank)) return;
        const text = `shard ${address} does not hold placement ${epoch}: ${errorMessage(error)}`;
        failures.push(new PlacementError(text, { cause: error }));
        changes.notify();
      });
    }
  };
  for (;;) {
    signal.throwIfAborted();
    ask();
    if (failures.length > 0) throw failures[0];
    const waits = members().some(
      (one) =>
        one.connected && one.rank !== undefined && holders.has(one.rank) && !one.holds(epoch),
    );
    if (!waits) break;
    await changeOrAbort(changes, signal);
  }
  if (before !== undefined) checkNoneLost(before.placement, placement, members());
}

/** Throws PlacementError where an expert that has a living copy would have none. */
function checkNoneLost(from: Placement, to: Placement, members: readonly ClusterMember[]): void {
  const living = livingRanks(members, from.epoch);
  const then = livingRanks(members, to.epoch);
  for (const [layer, replicas] of to.layers) {
    for (const [expert, copies] of replicas.entries()) {
      if (copies.some(({ rank }) => then.has(rank))) continue;
      if (!from.layers.get(layer)?.[expert]?.some(({ rank }) => living.has(rank))) continue;
      const ranks = copies.map(({ rank }) => rank).join(", ");
      throw new PlacementError(
        `placement ${to.epoch} would leave expert ${expert} of layer ${layer} without a living copy: shards ${ranks} are away`,
      );
    }
  }
}
