/** Runs a cluster under load while one thing after another goes wrong, as a schedule says, and judges what clients saw. */

import { setTimeout as delay } from "node:timers/promises";

import type { ChaosRound, Disturbance } from "./chaos-schedule.ts";
import { drainShard, waitForConvergence } from "../../bench/rig/control-api.ts";
import type { ElasticCluster, ElasticShard } from "../../bench/rig/elastic-cluster.ts";
import {
  driveLoad,
  judgeLoad,
  type DrivenRequest,
  type KnownPrompt,
  type LoadVerdict,
} from "../../bench/rig/load-driver.ts";

/** A run. */
export interface ChaosOptions {
  readonly cluster: ElasticCluster;
  readonly schedule: Iterator<ChaosRound, never>;
  readonly prompts: readonly KnownPrompt[];
  readonly concurrency: number;
  /** No new round begins after this time, milliseconds. */
  readonly durationMs: number;
  /** At least so many rounds, however long they take. */
  readonly minRounds: number;
  /** Longest that the cluster may take to converge after a round, milliseconds. */
  readonly convergeMs: number;
  /** Called after each round; the next begins when it is done. */
  readonly onRound?: (report: RoundReport) => Promise<void>;
}

/** What became of a round. */
export interface RoundReport {
  readonly round: ChaosRound;
  /** From the end of the fault, milliseconds. */
  readonly convergedAfterMs: number;
  /** Tokens that clients got meanwhile. */
  readonly tokens: number;
}

/** What a run comes to. */
export interface ChaosVerdict {
  readonly rounds: readonly RoundReport[];
  readonly load: LoadVerdict;
  /** Of the failed requests, those that ran on a router when it was killed. */
  readonly lostWithRouter: readonly DrivenRequest[];
  /** The other failed ones. */
  readonly lost: readonly DrivenRequest[];
}

/** The living one that a share in [0, 1) points at. */
function chosen<T>(living: readonly T[], share: number): T {
  return living[Math.floor(share * living.length)];
}

/** The run of a schedule over a cluster. */
class ChaosRun {
  readonly #cluster: ElasticCluster;
  /** When the routers that are gone were killed, by URL. */
  readonly killedRouters = new Map<string, number>();

  constructor(cluster: ElasticCluster) {
    this.#cluster = cluster;
  }

  /** Does what goes wrong and undoes it; resolves when all processes are there again that are to be. */
  async disturb(one: Disturbance): Promise<void> {
    const cluster = this.#cluster;
    switch (one.kind) {
      case "kill": {
        const victim = this.#shard(one.shard);
        await cluster.killShard(victim.rank);
        await delay(one.backAfterMs);
        if (one.newAddress) await cluster.addShard(victim.rank);
        else await cluster.restartShard(victim);
        return;
      }
      case "freeze": {
        const { process } = this.#shard(one.shard);
        process.kill("SIGSTOP");
        await delay(one.forMs);
        process.kill("SIGCONT");
        return;
      }
      case "slow link":
      case "stalled link":
      case "corrupted bytes": {
        const { proxy } = this.#shard(one.shard);
        if (one.kind === "slow link") proxy?.setFaults(one);
        else if (one.kind === "stalled link") proxy?.setFaults({ stalled: true });
        else proxy?.setFaults({ corruption: one.corruption });
        await delay(one.forMs);
        proxy?.setFaults({});
        return;
      }
      case "reset": {
        const { proxy } = this.#shard(one.shard);
        for (let time = 0; time < one.times; time++) {
          proxy?.reset();
          await delay(100);
        }
        return;
      }
      case "join":
        await cluster.addShard();
        return;
      case "drain": {
        const { rank } = this.#shard(one.shard);
        await drainShard(cluster, rank);
        await cluster.stopShard(rank);
        return;
      }
      case "Redis restart":
        await cluster.redis?.restart();
        return;
      case "Redis outage": {
        await cluster.redis?.kill();
        const victim = one.shard === undefined ? undefined : this.#shard(one.shard);
        if (victim !== undefined) await cluster.killShard(victim.rank);
        await delay(one.forMs);
        await cluster.redis?.restart();
        if (victim !== undefined) await cluster.restartShard(victim);
        return;
      }
      case "router restart": {
        const router = chosen(cluster.routers(), one.router);
        this.killedRouters.set(router.url, performance.now());
        await cluster.startRouter(await cluster.killRouter(router));
        return;
      }
    }
  }

  #shard(share: number): ElasticShard {
    return chosen(this.#cluster.shards(), share);
  }
}

/**
 * Runs it: all the time requests are sent to the living routers by turns. Rejects where a process ends that was not
 * told to, or the cluster does not converge in time; the caller names the seed.
 */
export async function runChaos(options: ChaosOptions): Promise<ChaosVerdict> {
  const { cluster, schedule, prompts, concurrency } = options;
  const run = new ChaosRun(cluster);
  const over = new AbortController();
  let turn = 0;
  let tokens = 0;
  const load = driveLoad({
    prompts,
    concurrency,
    target: () => {
      const routers = cluster.routers();
      return routers.length === 0 ? undefined : routers[turn++ % routers.length].url;
    },
    until: over.signal,
    onToken: () => tokens++,
  });
  const rounds: RoundReport[] = [];
  const startedAt = performance.now();
  try {
    while (
      rounds.length < options.minRounds ||
      performance.now() - startedAt < options.durationMs
    ) {
      const round = schedule.next().value;
      const tokensBefore = tokens;
      await Promise.all([run.disturb(round.main), round.beside && run.disturb(round.beside)]);
      const endedAt = performance.now();
      await waitForConvergence(cluster, options.convergeMs).catch((error: unknown) => {
        throw new Error(`after ${JSON.stringify(round)}`, { cause: error });
      });
      const convergedAfterMs = performance.now() - endedAt;
      const report = { round, convergedAfterMs, tokens: tokens - tokensBefore };
      rounds.push(report);
      await options.onRound?.(report);
    }
  } finally {
    over.abort();
  }
  await load.done;
  const verdict = judgeLoad(load.requests);
  const withRouter = ({ url, startedAt, endedAt = Infinity }: DrivenRequest) => {
    const killedAt = run.killedRouters.get(url);
    return killedAt !== undefined && startedAt <= killedAt && endedAt >= killedAt;
  };
  return {
    rounds,
    load: verdict,
    lostWithRouter: verdict.failed.filter(withRouter),
    lost: verdict.failed.filter((request) => !withRouter(request)),
  };
}
