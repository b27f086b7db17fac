/** Metrics of layers on shards, and of what a router does where shards fail or are late: rows sent again, hedges, waits, quarantines. */

import type { Metrics } from "../../core/platform/metrics.ts";
import type { ClusterChange } from "../cluster/cluster.ts";
import type { RecoveryObserver } from "../cluster/dispatch/layer-call.ts";
import { RESEND_REASONS } from "../cluster/dispatch/resend.ts";

/** From a pause before the next try to experts that are loaded from disk, seconds. */
const WAIT_BUCKETS = [0.01, 0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128];

/** From a loopback hop to a lost shard that comes back, seconds. */
const LAYER_BUCKETS = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10];

/** Registers the metrics and answers what feeds them. */
export function recoveryMetrics(metrics: Metrics) {
  const resends = metrics.counter(
    "moe_resends_total",
    "Dispatches that failed and whose rows went to a copy again, by why",
    ["reason"],
  );
  for (const reason of RESEND_REASONS) resends.inc({ reason }, 0);
  const hedges = metrics.counter(
    "moe_hedges_total",
    "Dispatches whose rows went to another copy as well, because the answer was late",
  );
  hedges.inc(0);
  const waits = metrics.histogram(
    "moe_copy_wait_seconds",
    "Time that rows of a layer waited for a copy of their experts that can be used",
    WAIT_BUCKETS,
  );
  waits.zero({});
  const layers = metrics.histogram(
    "moe_layer_seconds",
    "From the routing of a layer's rows to the sums of all their experts",
    LAYER_BUCKETS,
  );
  layers.zero({});
  const quarantines = metrics.counter(
    "moe_quarantines_total",
    "Times that a shard got no rows for a while, because its sums were wrong",
    ["rank"],
  );
  const observer: RecoveryObserver = {
    onResend: (reason) => resends.inc({ reason }),
    onHedge: () => hedges.inc(),
    onCopyWait: (seconds) => waits.observe(seconds),
    onLayer: (seconds) => layers.observe(seconds),
  };
  return {
    ...observer,
    onClusterChange: ({ kind, member }: ClusterChange) => {
      if (kind !== "quarantined" || member?.quarantinedUntil === undefined) return;
      quarantines.inc({ rank: String(member.rank) });
    },
  };
}
