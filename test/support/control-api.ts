/** What routers say of placement and shards, and how an operator drains one; for tests that change a cluster. */

import assert from "node:assert/strict";

import { isHealthy } from "./cluster.ts";
import type { ElasticCluster } from "./elastic-cluster.ts";
import { waitFor } from "./wait-for.ts";

/** A shard, as GET /v1/shards has it. */
export interface ShardView {
  readonly rank: number;
  readonly address: string;
  readonly state: string;
  readonly epochs: readonly number[];
  readonly released: boolean;
}

/** A placement, as GET /v1/placement has it. */
export interface PlacementView {
  readonly epoch: number;
}

/** Longest wait for one answer, milliseconds. */
const TIMEOUT_MS = 5_000;

/** Longest time until a drained shard may be stopped, milliseconds. */
const DRAIN_MS = 20_000;

async function getJson(url: string): Promise<unknown> {
  const response = await fetch(url, { signal: AbortSignal.timeout(TIMEOUT_MS) });
  const text = await response.text();
  assert.equal(response.status, 200, `${url}: ${text}`);
  return JSON.parse(text);
}

/** The shards of a router. */
export async function shardsOf(url: string): Promise<readonly ShardView[]> {
  return ((await getJson(`${url}/v1/shards`)) as { shards: ShardView[] }).shards;
}

/** The placement that a router works by. */
export async function placementOf(url: string): Promise<PlacementView> {
  return (await getJson(`${url}/v1/placement`)) as PlacementView;
}

/** Has a living router drain a shard, and waits until the shard may be stopped. */
export async function drainShard(
  cluster: ElasticCluster,
  rank: number,
  deadlineMs = DRAIN_MS,
): Promise<void> {
  await waitFor(
    `shard ${rank} to be drained`,
    async () => {
      const [router] = cluster.routers();
      const url = `${router.url}/v1/shards/${rank}/drain`;
      const response = await fetch(url, {
        method: "POST",
        signal: AbortSignal.timeout(TIMEOUT_MS),
      });
      await response.body?.cancel();
      if (!response.ok) return false;
      const shards = await shardsOf(router.url);
      return shards.some((shard) => shard.rank === rank && shard.released);
    },
    deadlineMs,
  );
}

/** Why the cluster is not at rest; undefined where it is: all routers healthy at one epoch, every living shard ready for it alone. */
async function unrest(cluster: ElasticCluster): Promise<string | undefined> {
  const ended = await cluster.unexpectedlyEnded();
  assert.deepEqual(ended, [], "a process ended that was not told to");
  const ranks = cluster.shards().map(({ rank }) => rank);
  const epochs = new Set<number>();
  for (const { url } of cluster.routers()) {
    if (!(await isHealthy(url))) return `${url} is not healthy`;
    const { epoch } = await placementOf(url);
    epochs.add(epoch);
    const shards = await shardsOf(url);
    for (const rank of ranks) {
      const shard = shards.find((one) => one.rank === rank && one.state === "ready");
      if (shard?.epochs.join() !== `${epoch}`)
        return `${url} at epoch ${epoch}: ${JSON.stringify(shards)}`;
    }
  }
  return epochs.size === 1 ? undefined : `routers at epochs ${[...epochs].join()}`;
}

/** Waits until the cluster is at rest. Rejects where a process ended that was not told to. */
export async function waitForConvergence(
  cluster: ElasticCluster,
  deadlineMs: number,
): Promise<void> {
  await waitFor(
    "the placement to converge",
    async () => {
      const reason = await unrest(cluster);
      if (reason !== undefined) throw new Error(reason);
      return true;
    },
    deadlineMs,
  );
}
