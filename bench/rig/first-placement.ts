/** The first placement of a cluster that has no control plane. */

import type { Cluster } from "../../router-service/cluster/cluster.ts";
import {
  planCluster,
  type PlanInput,
} from "../../router-service/cluster/planning/first-placement.ts";

/** Has a cluster work by the first placement once every one of its shards has said hello. */
export function placeFirst(cluster: Cluster, first: PlanInput): void {
  const stop = cluster.onChange(({ kind }) => {
    if (kind !== "joined") return;
    const hellos = cluster.members().map(({ hello }) => hello);
    if (!hellos.every((hello) => hello !== undefined)) return;
    stop();
    // A shard that refuses it is away with its reason, and asked again.
    cluster.adopt(planCluster(first, hellos)).catch(() => {});
  });
}
