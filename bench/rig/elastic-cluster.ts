/** A cluster of real processes that changes while it serves: shards die, freeze, come and go behind proxies, routers and Redis restart. */

import { setTimeout as delay } from "node:timers/promises";

import { isHealthy, TINY_MODEL } from "./cluster.ts";
import { startFaultProxy, type FaultProxy } from "./fault-proxy.ts";
import { startRedis, type TestRedis } from "./redis.ts";
import { startService, type ServiceCommand, type ServiceProcess } from "./service-process.ts";
import { waitFor } from "./wait-for.ts";

/** What the cluster is made of. Flags are as on the command line. */
export interface ElasticOptions {
  /** Shards at the start; their ranks count from 0. */
  readonly shards: number;
  /** Default: 1. */
  readonly routers?: number;
  /** Shards are found, and placements kept, in a Redis of the cluster's own; default: a fixed list of the first shards. */
  readonly redis?: boolean;
  /** Shards are reached by fault proxies; default: false. */
  readonly proxied?: boolean;
  /** Of the proxies' random numbers. */
  readonly seed?: number;
  readonly model?: string;
  /** Default: cpu. */
  readonly device?: "webgpu" | "cpu";
  /** Script of the shards; default: the product's. */
  readonly shardScript?: string;
  readonly shardFlags?: (rank: number) => readonly string[];
  /** Of all routers, or of each by its index. */
  readonly routerFlags?: readonly string[] | ((index: number) => readonly string[]);
  /** Hears each line that a process writes, as it comes, with the process's name. */
  readonly onLine?: (name: string, line: string) => void;
}

/** A shard of the cluster. */
export interface ElasticShard {
  readonly rank: number;
  readonly process: ServiceProcess;
  /** The proxy before it; undefined where there is none. */
  readonly proxy: FaultProxy | undefined;
  /** What routers reach it by. */
  readonly address: string;
}

/** A router of the cluster. */
export interface ElasticRouter {
  readonly process: ServiceProcess;
  readonly url: string;
}

/** How long processes may take until a cluster is healthy, milliseconds. */
const HEALTHY_MS = 30_000;

/** Waits for all, also where one fails: none is still on its way then, and left when the others are stopped. */
async function all(starts: readonly Promise<unknown>[]): Promise<void> {
  const settled = await Promise.allSettled(starts);
  const failed = settled.find(({ status }) => status === "rejected");
  if (failed?.status === "rejected") throw failed.reason;
}

/** The running cluster. */
export class ElasticCluster {
  readonly redis: TestRedis | undefined;
  readonly #options: ElasticOptions;
  readonly #shards = new Map<number, ElasticShard>();
  readonly #routers: (ElasticRouter | undefined)[] = [];
  /** Those that were healthy once. */
  readonly #healthy = new Set<ElasticRouter>();
  readonly #gone: ServiceProcess[] = [];
  readonly #proxies: FaultProxy[] = [];
  #nextRank = 0;

  private constructor(options: ElasticOptions, redis: TestRedis | undefined) {
    this.#options = options;
    this.redis = redis;
  }

  /** Starts everything and waits until all routers are healthy. Rejects with the processes' output where they do not come up. */
  static async start(options: ElasticOptions): Promise<ElasticCluster> {
    const cluster = new ElasticCluster(options, options.redis ? await startRedis() : undefined);
    try {
      await all(Array.from({ length: options.shards }, () => cluster.addShard()));
      await all(
        Array.from({ length: options.routers ?? 1 }, (_, index) => cluster.startRouter(index)),
      );
      return cluster;
    } catch (error) {
      const output = cluster.output();
      await cluster.close();
      throw new Error(`the cluster does not come up: ${String(error)}\n${output}`, {
        cause: error,
      });
    }
  }

  /** Living shards, ascending by rank. */
  shards(): ElasticShard[] {
    return [...this.#shards.values()].sort((a, b) => a.rank - b.rank);
  }

  /** A living shard. Throws where there is none of this rank. */
  shard(rank: number): ElasticShard {
    const shard = this.#shards.get(rank);
    if (shard === undefined) throw new Error(`no shard of rank ${rank} lives`);
    return shard;
  }

  /** Living routers that have come up. */
  routers(): ElasticRouter[] {
    return this.#routers.flatMap((router) =>
      router !== undefined && this.#healthy.has(router) ? [router] : [],
    );
  }

  /** Starts a shard of a new rank, or of one whose process is gone, at an address of its own. */
  async addShard(rank = this.#nextRank): Promise<ElasticShard> {
    this.#nextRank = Math.max(this.#nextRank, rank + 1);
    return this.#startShard(rank, undefined);
  }

  /** kill -9; resolves when the process is gone. Its proxy refuses connections from then on. */
  async killShard(rank: number): Promise<void> {
    const { process } = this.shard(rank);
    process.kill("SIGKILL");
    await process.exited;
    this.#forget(rank);
  }

  /** Starts the shard of a rank again whose process is gone, at the address that it had. */
  async restartShard(shard: ElasticShard): Promise<ElasticShard> {
    return this.#startShard(shard.rank, shard);
  }

  /** SIGTERM; resolves with how it ended. */
  async stopShard(rank: number, graceMs?: number): Promise<void> {
    const { process } = this.shard(rank);
    const { code, signal } = await process.stop(graceMs);
    this.#forget(rank);
    if (code !== 0)
      throw new Error(`shard ${rank} ended with ${code} ${signal}\n${process.output()}`);
  }

  /** Starts router `index`, which does not run, and waits until it is healthy. */
  async startRouter(index: number): Promise<ElasticRouter> {
    const { model = TINY_MODEL, device = "cpu", routerFlags = [] } = this.#options;
    const process = await this.#startProcess({
      name: `router ${index}`,
      script: "router-service/main.ts",
      argv: [
        ["--model", model, "--device", device, "--weights", "f32", "--wire", "f32"],
        ["--http-port", "0", "--grpc-port", "0"],
        this.redis
          ? []
          : [
              "--shards",
              this.shards()
                .map(({ address }) => address)
                .join(","),
            ],
        this.redis ? this.#discoveryFlags(this.redis) : [],
        typeof routerFlags === "function" ? routerFlags(index) : routerFlags,
      ].flat(),
    });
    const router = { process, url: `http://127.0.0.1:${process.ready.httpPort}` };
    this.#routers[index] = router;
    await waitFor("a healthy router", () => isHealthy(router.url), HEALTHY_MS);
    this.#healthy.add(router);
    return router;
  }

  /** kill -9 of a router; resolves with its index when its process is gone. */
  async killRouter(router: ElasticRouter): Promise<number> {
    const index = this.#routers.indexOf(router);
    if (index < 0) throw new Error(`${router.process.name} does not run`);
    this.#routers[index] = undefined;
    router.process.kill("SIGKILL");
    await router.process.exited;
    this.#gone.push(router.process);
    return index;
  }

  /** Bits that all proxies have flipped so far. */
  flips(): number {
    return this.#proxies.reduce((sum, proxy) => sum + proxy.flips(), 0);
  }

  /** Processes that ended without being told to. */
  unexpectedlyEnded(): Promise<string[]> {
    const living = [...this.shards(), ...this.routers()].map(({ process }) => process);
    return Promise.all(
      living.map(async (process) => {
        const exit = await Promise.race([process.exited, delay(0, undefined)]);
        return exit === undefined ? [] : [`${process.name}: ${JSON.stringify(exit)}`];
      }),
    ).then((lists) => lists.flat());
  }

  /** What all processes wrote, also those that are gone, the end of it, for messages of failures. */
  output(charactersEach = 4000): string {
    const routers = this.#routers.filter((router) => router !== undefined);
    const living = [...routers, ...this.shards()].map(({ process }) => process);
    return [...this.#gone, ...living]
      .map((process) => `--- ${process.name}\n${process.output().slice(-charactersEach)}`)
      .join("\n");
  }

  async close(): Promise<void> {
    await Promise.all(
      this.#routers.flatMap((router) => (router === undefined ? [] : [router.process.stop()])),
    );
    await Promise.all(
      this.shards().map(async ({ process }) => {
        process.kill("SIGCONT");
        await process.stop();
      }),
    );
    await Promise.all(this.#proxies.map((proxy) => proxy.close()));
    await this.redis?.close();
  }

  /** At the proxy and port of `before`, or at new ones. */
  async #startShard(rank: number, before: ElasticShard | undefined): Promise<ElasticShard> {
    if (this.#shards.has(rank)) throw new Error(`a shard of rank ${rank} lives`);
    const { model = TINY_MODEL, device = "cpu", seed = 1 } = this.#options;
    const { proxied = false, shardScript = "expert-service/main.ts" } = this.#options;
    const proxy = proxied ? (before?.proxy ?? (await this.#startProxy(seed))) : undefined;
    const process = await this.#startProcess({
      name: `shard ${rank}`,
      script: shardScript,
      argv: [
        ["--model", model, "--device", device, "--weights", "f32", "--rank", `${rank}`],
        ["--port", proxy || before === undefined ? "0" : `${before.process.ready.port}`],
        this.redis ? ["--redis-url", this.redis.url] : [],
        this.redis && proxy ? ["--advertise", `127.0.0.1:${proxy.port}`] : [],
        this.#options.shardFlags?.(rank) ?? [],
      ].flat(),
    });
    proxy?.setTarget(process.ready.port);
    const address = `127.0.0.1:${proxy?.port ?? process.ready.port}`;
    const shard = { rank, process, proxy, address };
    this.#shards.set(rank, shard);
    return shard;
  }

  #startProcess(command: ServiceCommand): Promise<ServiceProcess> {
    const { onLine } = this.#options;
    return startService({ ...command, onLine: onLine && ((line) => onLine(command.name, line)) });
  }

  #discoveryFlags({ url }: TestRedis): string[] {
    return ["--redis-url", url, "--discover", "--min-shards", `${this.#options.shards}`];
  }

  async #startProxy(seed: number): Promise<FaultProxy> {
    const proxy = await startFaultProxy(undefined, seed + 1000 * this.#proxies.length);
    this.#proxies.push(proxy);
    return proxy;
  }

  #forget(rank: number): void {
    const { process, proxy } = this.shard(rank);
    proxy?.setTarget(undefined);
    this.#shards.delete(rank);
    this.#gone.push(process);
  }
}
