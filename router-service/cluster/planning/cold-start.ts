/** The first placement of a cluster, once the shards that it waits for are there. */

import { errorMessage } from "../../../core/error-message.ts";
import { LOCAL_RANK } from "../../../core/placement/placement.ts";
import type { Cluster } from "../cluster.ts";
import { type Membership, sharedLocalBytes } from "../membership-static.ts";
import { type ClusterPlacement, planCluster, type PlanInput } from "./first-placement.ts";
import { isUsable } from "./placement-outlook.ts";

/** What it is made from. */
export interface FirstPlanOptions {
  readonly cluster: Pick<Cluster, "members">;
  readonly membership: Pick<Membership, "routers">;
  readonly first: PlanInput;
  /** Shards that it waits for. */
  readonly minShards: number;
}

/** What it came to. */
export interface FirstPlan {
  /** Undefined where there is none yet. */
  readonly placed: ClusterPlacement | undefined;
  readonly decision: string;
  /** Why there can be none; undefined where there may. */
  readonly unplaceable: string | undefined;
}

/** The first placement, on the shards that are there and stay; on the routers' own devices only where those lack room. */
export function planFirst(
  { cluster, membership, first, minShards }: FirstPlanOptions,
  now: number,
): FirstPlan {
  const usable = cluster.members().filter((member) => isUsable(member, now));
  const offers = usable.flatMap(({ hello, status }) =>
    hello === undefined || status?.draining === true ? [] : [hello],
  );
  const hellos = offers.filter(({ rank }) => rank !== LOCAL_RANK);
  if (hellos.length < minShards) {
    const decision = `${hellos.length} of ${minShards} shards are there`;
    return { placed: undefined, decision, unplaceable: undefined };
  }
  const local = offers.find(({ rank }) => rank === LOCAL_RANK);
  const memoryBytes = sharedLocalBytes(membership);
  const spare = local && memoryBytes > 0 ? { ...local, memoryBytes } : undefined;
  try {
    const placed = planCluster(first, hellos, spare);
    const decision = `the first placement, on ${hellos.length} shards`;
    return { placed, decision, unplaceable: undefined };
  } catch (error) {
    const reason = errorMessage(error);
    return { placed: undefined, decision: reason, unplaceable: reason };
  }
}
