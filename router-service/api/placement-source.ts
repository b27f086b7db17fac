/** Where the answers about placements come from. */

import type { PairTables } from "../../core/statistics/load.ts";
import type { Cluster } from "../cluster/cluster.ts";
import type { PlacementFollower } from "../cluster/planning/placement-follower.ts";
import type { PlacementOutlook } from "../cluster/planning/placement-outlook.ts";
import type { PlannerLoop } from "../cluster/planning/planner-loop.ts";
import type { PlannerThread } from "../cluster/planning/planner-thread.ts";

/** What a router with shards knows of them and of its placement. */
export interface PlacementSource {
  readonly cluster: Pick<Cluster, "members" | "current" | "drain" | "missingReason">;
  readonly follower: Pick<PlacementFollower, "stored" | "unplaceable">;
  readonly planner: Pick<PlannerLoop, "state">;
  readonly outlook: Pick<PlacementOutlook, "facts" | "forecast">;
  readonly thread: Pick<PlannerThread, "plan" | "assess">;
  /** What this router has counted of experts that tokens choose together. */
  readonly pairs: () => PairTables;
}
