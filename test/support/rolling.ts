/** Shards replaced one by one, and a cluster that grows and shrinks. */

import { drainShard, waitForConvergence } from "../../bench/rig/control-api.ts";
import type { ElasticCluster } from "../../bench/rig/elastic-cluster.ts";

/** Longest time until a placement stands again after a change, milliseconds. */
const CONVERGE_MS = 15_000;

/** For each shard: another joins, gets experts, and the shard is drained and stopped. */
export async function replaceEveryShard(cluster: ElasticCluster): Promise<void> {
  for (const { rank } of cluster.shards()) {
    await cluster.addShard();
    await waitForConvergence(cluster, CONVERGE_MS);
    await retire(cluster, rank);
  }
  await waitForConvergence(cluster, CONVERGE_MS);
}

/** Two shards join, and the two of the lowest ranks are drained and stopped. */
export async function growAndShrink(cluster: ElasticCluster): Promise<void> {
  await Promise.all([cluster.addShard(), cluster.addShard()]);
  await waitForConvergence(cluster, CONVERGE_MS);
  const [first, second] = cluster.shards();
  await retire(cluster, first.rank);
  await retire(cluster, second.rank);
  await waitForConvergence(cluster, CONVERGE_MS);
}

async function retire(cluster: ElasticCluster, rank: number): Promise<void> {
  await drainShard(cluster, rank);
  await cluster.stopShard(rank);
}
