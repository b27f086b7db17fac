/** What routers say of placement and shards, and how an operator drains one; for those who change a cluster. */

import assert from "node:assert/strict";

import { isHealthy } from "./cluster.ts";
import type { ElasticCluster } from "./elastic-cluster.ts";
import { waitFor } from "./wait-for.ts";

/** A shard, as GET /v1/shards has it; the parts that are read here. */
export interface ShardView {
  readonly rank: number | "local" | null;
  readonly address: string;
  readonly state: string;
  readonly epochs: readonly number[];
  readonly safe_to_terminate: boolean;
  readonly resident_bytes: number | null;
}

/** A placement, as GET /v1/placement has it; the parts that are read here. */
export interface PlacementView {
  readonly epoch: number;
  readonly stages_left: number;
  /** Why it was planned; null where that is not known. */
  readonly why: string | null;
  /** Whether this router plans for all. */
  readonly leading: boolean;
  /** What it decided last; null where it does not plan. */
  readonly last_decision: string | null;
  /** The Redis that routers share does not answer it. */
  readonly redis_away: boolean;
  /** Expected time of a step's MoE layers; null where nothing is expected. */
  readonly predicted_step_seconds: number | null;
  readonly forecast: { readonly tokens_per_step: number } | null;
  readonly layers: readonly {
    readonly layer: number;
    /** Copies of each expert. */
    readonly experts: readonly (readonly { readonly rank: number | "local" }[])[];
  }[];
}

/** Longest wait for one answer, milliseconds. */
const TIMEOUT_MS = 5_000;

/** Time between two looks at all routers: sooner ones would take the cores from what is waited for, milliseconds. */
const LOOK_MS = 100;

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

/** Who holds anything in a placement: ranks in order, then "local". */
export function ranksOf({ layers }: PlacementView): (number | "local")[] {
  const ranks = new Set(layers.flatMap(({ experts }) => experts.flat().map(({ rank }) => rank)));
  const order = (rank: number | "local") => (rank === "local" ? Infinity : rank);
  return [...ranks].sort((a, b) => order(a) - order(b));
}

/** Copies that are in the second placement and not in the first, of the same layers. */
export function newCopies(from: PlacementView, to: PlacementView): number {
  let count = 0;
  for (const [at, { experts }] of to.layers.entries()) {
    for (const [expert, copies] of experts.entries()) {
      const before = new Set(from.layers[at].experts[expert].map(({ rank }) => rank));
      for (const { rank } of copies) if (!before.has(rank)) count++;
    }
  }
  return count;
}

/** Has a living router drain a shard, and waits until all of them say that it may be stopped. */
export async function drainShard(
  cluster: ElasticCluster,
  rank: number,
  deadlineMs = DRAIN_MS,
): Promise<void> {
  let asked = false;
  await waitFor(
    `shard ${rank} to be drained`,
    async () => {
      const routers = cluster.routers();
      if (!asked) {
        const url = `${routers[0].url}/v1/shards/${rank}/drain`;
        const signal = AbortSignal.timeout(TIMEOUT_MS);
        const response = await fetch(url, { method: "POST", signal });
        const text = await response.text();
        // The router may have lost sight of the shard for a moment.
        if (!response.ok) throw new Error(`HTTP ${response.status} ${text}`);
        asked = true;
      }
      const lists = await Promise.all(routers.map(({ url }) => shardsOf(url)));
      const views = lists.map((shards) => shards.find((shard) => shard.rank === rank));
      if (views.every((view) => view?.safe_to_terminate === true)) return true;
      throw new Error(`it is ${JSON.stringify(views)}`);
    },
    deadlineMs,
    LOOK_MS,
  ).catch(async (error: unknown) => {
    throw new Error(`${String(error)}; ${await decisions(cluster)}`, { cause: error });
  });
}

/** What the routers last decided, for messages of failures. */
async function decisions(cluster: ElasticCluster): Promise<string> {
  const views = await Promise.all(
    cluster.routers().map(({ url }) => placementOf(url).catch((error: unknown) => String(error))),
  );
  return JSON.stringify(views, (key, value: unknown) => (key === "layers" ? undefined : value));
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
    LOOK_MS,
  );
}
