/** Clusters of 0, 1 and 2 shards on this machine, side by side, for measurements that take turns among them. */

import { availableParallelism } from "node:os";

import { foreignEnvironment } from "../core/platform/config.ts";
import { DRIVER_THREADS, driverThreads } from "../deploy/driver-threads.ts";
import { startCluster, type Cluster } from "./rig/cluster.ts";

/** Numbers of shards that are compared. */
const SHARD_COUNTS = [0, 1, 2] as const;

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

/** What `switchyard up` sets for a cluster of so many shards. */
export function launcherEnvironment(shards: number): Readonly<Record<string, string>> {
  const threads = driverThreads(availableParallelism(), 1 + shards);
  if (threads === undefined || foreignEnvironment(DRIVER_THREADS) !== undefined) return {};
  return { [DRIVER_THREADS]: threads };
}

/** Starts all clusters with the default weights and wire, runs `measure`, and stops them whatever happens. */
export async function withClusters<T>(
  settings: ClusterSettings,
  measure: (clusters: readonly MeasuredCluster[]) => Promise<T>,
): Promise<T> {
  const clusters: MeasuredCluster[] = [];
  try {
    for (const shards of SHARD_COUNTS) {
      const options = { ...settings, shards, weights: "auto", wire: "f16" } as const;
      const cluster = await startCluster({ ...options, env: launcherEnvironment(shards) });
      clusters.push({ shards, cluster });
    }
    return await measure(clusters);
  } finally {
    await Promise.all(clusters.map(({ cluster }) => cluster.close()));
  }
}
