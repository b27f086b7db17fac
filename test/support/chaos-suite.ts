/** Chaos runs of the same demands, short and long. */

import assert from "node:assert/strict";

import { metric } from "../../bench/rig/api.ts";
import { runChaos, type ChaosVerdict, type RoundReport } from "./chaos-run.ts";
import { CHAOS_TURN, chaosSchedule, type ChaosShape } from "./chaos-schedule.ts";
import { placementOf, waitForConvergence } from "../../bench/rig/control-api.ts";
import { ElasticCluster } from "../../bench/rig/elastic-cluster.ts";
import { failureText, runUndisturbed } from "../../bench/rig/load-driver.ts";
import { residentBytes } from "./resident-bytes.ts";
import { withoutTies } from "./routing-ties.ts";
import { TINY_EXPERTS_BYTES } from "./tiny-experts.ts";
import { waitFor } from "../../bench/rig/wait-for.ts";

/** Shards at the start: with one killed and one drained, one is left. */
const SHARDS = 3;

/** Longest time until all that was under way has ended, milliseconds: requests, and what a shard fetches from another. */
const LEFT_MS = 30_000;

/** Longest time until a router that has just started says what its placement is worth, milliseconds. */
const JUDGED_MS = 30_000;

/** How long and how hard a run is. */
export interface ChaosLength {
  readonly seed: number;
  readonly durationMs: number;
  readonly shape: ChaosShape;
  readonly concurrency: number;
  readonly convergeMs: number;
  /** How long a process warms up, milliseconds: a router's heaps grow by some 90 MB in its first 30 s under load, and then no more. */
  readonly warmMs: number;
  /** Bytes by which a process may grow when it is warm. */
  readonly maxGrowthBytes: number;
  readonly onRound?: (report: RoundReport) => void;
}

/**
 * Runs chaos over 3 shards behind proxies, two routers and a Redis, and checks what is demanded of it: no wrong token,
 * no request lost but those of a killed router, nothing left over, and a placement that converges after each round.
 * Fails with the seed and what the processes wrote.
 */
export async function assertSurvivesChaos(
  length: ChaosLength,
): Promise<ChaosVerdict & { readonly growth: readonly Growth[] }> {
  const { seed, durationMs, shape, concurrency, convergeMs } = length;
  const cluster = await ElasticCluster.start({
    shards: SHARDS,
    routers: 2,
    redis: true,
    proxied: true,
    seed,
    // Each has room for all experts and not one more: moves must come in stages.
    shardFlags: () => ["--memory-limit", `${TINY_EXPERTS_BYTES}`],
  });
  try {
    const sizes = { count: 64, minLength: 4, maxLength: 40, maxTokens: 16 };
    const drawn = await runUndisturbed(cluster.routers()[0].url, seed, sizes);
    const prompts = await withoutTies(drawn.prompts);
    await waitForConvergence(cluster, convergeMs);
    const memory = new MemoryWatch(cluster, length.warmMs);
    await memory.look();
    const verdict = await runChaos({
      cluster,
      schedule: chaosSchedule(seed, shape),
      prompts,
      concurrency,
      durationMs,
      minRounds: CHAOS_TURN,
      convergeMs,
      onRound: async (report) => {
        await memory.look();
        length.onRound?.(report);
      },
    });
    assert.deepEqual(verdict.load.wrong, [], "wrong tokens");
    assert.equal(verdict.lost.length, 0, failureText(verdict.lost));
    assert.ok(verdict.load.requests > 2 * concurrency, `${verdict.load.requests} requests`);
    assert.ok(cluster.flips() > 0, "no bit was flipped");
    const resends = await Promise.all(
      cluster.routers().map(({ url }) => metric(url, "moe_resends_total")),
    );
    assert.ok(Math.max(...resends) > 0, "no rows were sent again");
    await assertNothingLeft(cluster);
    const growth = await memory.growth();
    assert.ok(growth.length > 0, "no process has lived through a round when warm");
    for (const { name, bytes } of growth)
      assert.ok(bytes <= length.maxGrowthBytes, `${name} has grown by ${bytes} bytes`);
    return { ...verdict, growth };
  } catch (error) {
    const message = `chaos of seed ${seed}: ${String(error)}\n${cluster.output()}`;
    throw new Error(message, { cause: error });
  } finally {
    await cluster.close();
  }
}

/** Waits until no router has a sequence or a KV block, and every shard one connection to each router and no other. */
async function assertNothingLeft(cluster: ElasticCluster): Promise<void> {
  const routers = cluster.routers();
  await waitFor(
    "all KV blocks to be free, no sequence and no stream left",
    async () => {
      for (const { url } of routers) {
        for (const name of [
          "num_requests_running",
          "num_requests_waiting",
          "kv_cache_usage_perc",
        ]) {
          const value = await metric(url, `vllm:${name}`);
          if (value !== 0) throw new Error(`${url} has ${name} ${value}`);
        }
      }
      for (const { rank, proxy } of cluster.shards()) {
        const count = proxy?.connections();
        if (count !== routers.length)
          throw new Error(`shard ${rank} has ${count} connections, expected ${routers.length}`);
      }
      return true;
    },
    LEFT_MS,
  );
}

/** By how much a process has grown beyond the most that it had while it warmed up. */
export interface Growth {
  readonly name: string;
  /** Rounds that it lived through since. */
  readonly rounds: number;
  readonly bytes: number;
}

/** What is known of a process. */
interface Watched {
  /** Whether it is a router that has planned placements: its planner's heaps are larger than another's. */
  readonly hasLed: boolean;
  /** When it was seen first, or to lead, milliseconds of performance.now(). */
  readonly since: number;
  /** The most that it had until it was warm: heaps shrink by tens of megabytes when garbage is collected, once a minute or so. */
  mostBytes: number;
  rounds: number;
}

/** Watches how much memory the processes of a cluster have. They come and go, and routers begin to plan: each counts from when it is warm. */
class MemoryWatch {
  readonly #cluster: ElasticCluster;
  readonly #warmMs: number;
  readonly #watched = new Map<number, Watched>();

  constructor(cluster: ElasticCluster, warmMs: number) {
    this.#cluster = cluster;
    this.#warmMs = warmMs;
  }

  async look(): Promise<void> {
    const leaders = await this.#leaders();
    const now = performance.now();
    for (const { pid } of this.#processes()) {
      let one = this.#watched.get(pid);
      const hasLed = leaders.has(pid) || one?.hasLed === true;
      if (one === undefined || one.hasLed !== hasLed) {
        one = { hasLed, since: now, mostBytes: 0, rounds: -1 };
        this.#watched.set(pid, one);
      }
      const isWarm = one.rounds >= 0;
      if (isWarm) one.rounds++;
      else one.mostBytes = Math.max(one.mostBytes, await residentBytes(pid));
      if (!isWarm && now - one.since >= this.#warmMs) one.rounds = 0;
    }
  }

  /** Of the processes that live and have done so for a round or more when warm. */
  async growth(): Promise<Growth[]> {
    const all = this.#processes().map(async ({ name, pid }) => {
      const { mostBytes, rounds } = this.#watched.get(pid) ?? { mostBytes: 0, rounds: 0 };
      return { name, rounds, bytes: (await residentBytes(pid)) - mostBytes };
    });
    return (await Promise.all(all)).filter(({ rounds }) => rounds > 0);
  }

  /** Process ids of the routers that plan; each has been asked to judge its placement, whose thread starts with the first question. */
  async #leaders(): Promise<ReadonlySet<number>> {
    const asked = this.#cluster.routers().map(async ({ url, process }) => {
      const view = await waitFor(
        `${url} to judge its placement`,
        () => placementOf(url),
        JUDGED_MS,
      );
      return view.leading ? [process.pid] : [];
    });
    return new Set((await Promise.all(asked)).flat());
  }

  #processes() {
    return [...this.#cluster.routers(), ...this.#cluster.shards()].map(({ process }) => process);
  }
}
