/** Clusters of 0, 1 and 2 shards on this machine, side by side, for measurements that take turns among them. */

import { startCluster, type Cluster } from "../test/support/cluster.ts";

/** Numbers of shards that are compared. */
export const SHARD_COUNTS = [0, 1, 2] as const;

/** What the clusters serve, and on what. */
export interface ClusterSettings {
  readonly model: string;
  readonly device: "auto" | "webgpu" | "cpu";
}

/** A cluster and its number of shards. */
export interface MeasuredCluster {
  readonly shards: number;
  readonly cluster: Cluster;
}

/** Starts all clusters with the default weights and wire, runs `measure`, and stops them whatever happens. */
export async function withClusters<T>(
  settings: ClusterSettings,
  measure: (clusters: readonly MeasuredCluster[]) => Promise<T>,
): Promise<T> {
  const clusters: MeasuredCluster[] = [];
  try {
    for (const shards of SHARD_COUNTS) {
      const cluster = await startCluster({ ...settings, shards, weights: "auto", wire: "f16" });
      clusters.push({ shards, cluster });
    }
    return await measure(clusters);
  } finally {
    await Promise.all(clusters.map(({ cluster }) => cluster.close()));
  }
}
