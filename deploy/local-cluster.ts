/** `switchyard up`: a cluster of processes on this machine, started, watched and stopped together. */

import { existsSync } from "node:fs";
import { availableParallelism } from "node:os";
import { basename, join, resolve } from "node:path";
import { setTimeout as delay } from "node:timers/promises";

import { defaultForeignEnvironment, loadConfig, toArguments } from "../core/platform/config.ts";
import { exitWithParent, startLifecycle, type Lifecycle } from "../core/platform/lifecycle.ts";
import { requireFreePorts } from "../core/platform/listening.ts";
import { createLogger, formatLogLine, type Logger } from "../core/platform/log.ts";
import {
  createProgressView,
  type ProgressMessage,
  type ProgressView,
} from "../core/platform/progress.ts";
import { hostPort } from "../core/platform/service-options.ts";
import { expertConfigSchema } from "../expert-service/config.ts";
import { routerConfigSchema } from "../router-service/config.ts";
import { keepRunning, startService, type ChildService } from "./child-service.ts";
import { DRIVER_THREADS, driverThreads } from "./driver-threads.ts";
import { hasRedisServer, startRedis } from "./redis-process.ts";
import { upAbout, upConfigSchema, type UpConfig } from "./up-config.ts";

const ROOT = join(import.meta.dirname, "..");

/** Stopping a router, then shards, then Redis, each with its own deadline. */
const STOP_DEADLINE_MS = 30_000;

const HEALTH_RETRY_MS = 50;
const HEALTH_REQUEST_MS = 2000;

/** Of the kind that the demo model has seen. */
const QUESTION = "Tom has 3 boxes with 12 pencils in each box. How many pencils does he have?";

/** What the parts of the start share. */
interface Launch {
  readonly config: UpConfig;
  readonly lifecycle: Lifecycle;
  readonly logger: Logger;
  readonly view: ProgressView;
  /** Aborts when the cluster takes too long to start, or is to stop. */
  readonly signal: AbortSignal;
}

/** Starts the cluster that the flags describe, prints where it serves, and stays until it is stopped. */
export async function runUp(argv: readonly string[]): Promise<void> {
  const config = loadConfig(upConfigSchema, upAbout, argv);
  const logger = createLogger("up", config.logLevel);
  const lifecycle = startLifecycle(logger, STOP_DEADLINE_MS);
  exitWithParent(lifecycle);
  const view = createProgressView(logger);
  const deadline = AbortSignal.timeout(config.startTimeout * 1000);
  const signal = AbortSignal.any([deadline, lifecycle.signal]);
  try {
    await startCluster({ config, lifecycle, logger, view, signal });
  } catch (error) {
    if (lifecycle.signal.aborted) return;
    view.close();
    const reason = deadline.aborted
      ? `the cluster does not serve within --start-timeout ${config.startTimeout} s`
      : (error as Error).message;
    lifecycle.stop(reason, 1);
  }
}

async function startCluster(launch: Launch): Promise<void> {
  const { config, lifecycle, view } = launch;
  // Of all processes here: three software GPUs of a thread per core each would be in one another's way.
  const threads = driverThreads(availableParallelism(), 1 + config.shards);
  if (threads !== undefined) defaultForeignEnvironment(DRIVER_THREADS, threads);
  // The router starts when its shards are there: what it would end by is known now.
  const { httpPort, grpcPort } = config;
  await requireFreePorts(config.host, { "--http-port": httpPort, "--grpc-port": grpcPort });
  const ranks = Array.from({ length: config.shards }, (_, rank) => rank);
  const redisUrl = await provideRedis(launch);
  const addresses = await Promise.all(ranks.map((rank) => launchShard(launch, rank, redisUrl)));
  // In a Redis of its own, the cluster finds shards that are started later as well.
  const discover = redisUrl !== undefined && redisUrl !== config.redisUrl && config.shards > 0;
  const router = await startService(
    {
      ...serviceSpec(launch, "router", "router-service/main.ts"),
      ...toArguments(routerConfigSchema, {
        ...config,
        shards: discover ? [] : addresses,
        discover,
        minShards: Math.max(1, config.shards),
        redisUrl,
      }),
    },
    launch.signal,
  );
  lifecycle.onStop("router", () => router.stop());
  void router.exited.then(({ code, signal }) =>
    lifecycle.stop(`the router ended, ${signal ?? `exit code ${code}`}`, code),
  );

  const url = `http://${hostPort(reachable(config.host), router.ready.httpPort ?? 0)}`;
  await becomesHealthy(url, launch.signal);
  view.close();
  process.stdout.write(greeting(config, url, redisUrl));
}

/** URL of the Redis to use: the one given, or a redis-server of our own; undefined where there is none. */
async function provideRedis(launch: Launch): Promise<string | undefined> {
  const { config, lifecycle, logger, signal } = launch;
  if (config.redisUrl !== undefined) return config.redisUrl;
  if (!hasRedisServer()) {
    logger.warn(
      "redis-server is not installed: the routing statistics stay in the router's memory",
    );
    return undefined;
  }
  const first = await startRedis(0, signal);
  const { port = 0 } = first.ready;
  const kept = keepRunning(first, (again) => startRedis(port, again), logger);
  lifecycle.onStop("redis-server", () => kept.stop());
  return `redis://127.0.0.1:${port}`;
}

/** Address of a shard that is kept running there. */
async function launchShard(
  launch: Launch,
  rank: number,
  redisUrl: string | undefined,
): Promise<string> {
  const { config, lifecycle, logger, signal } = launch;
  const start = (port: number, until: AbortSignal): Promise<ChildService> =>
    startService(
      {
        ...serviceSpec(launch, `shard ${rank}`, "expert-service/main.ts"),
        ...toArguments(expertConfigSchema, {
          model: config.model,
          rank,
          host: "127.0.0.1",
          port,
          device: config.device,
          adapter: config.adapter,
          weights: config.weights,
          tune: config.tune,
          expertsBits: config.expertsBits,
          expertsGroup: config.expertsGroup,
          memoryLimit: config.memoryLimit,
          redisUrl,
          logLevel: config.logLevel,
        }),
      },
      until,
    );
  const first = await start(0, signal);
  const { port = 0 } = first.ready;
  const kept = keepRunning(first, (again) => start(port, again), logger);
  lifecycle.onStop(first.name, () => kept.stop());
  return `127.0.0.1:${port}`;
}

function serviceSpec({ view }: Launch, name: string, script: string) {
  return {
    name,
    script: join(ROOT, script),
    onLine: (line: string) => view.print(process.stderr.isTTY ? formatLogLine(line, true) : line),
    onProgress: ({ label, done, total, stopped }: ProgressMessage["progress"]) =>
      stopped ? view.stop(label) : view.update(label, done, total),
  };
}

async function becomesHealthy(url: string, signal: AbortSignal): Promise<void> {
  while (!(await isHealthy(url))) await delay(HEALTH_RETRY_MS, undefined, { signal });
}

async function isHealthy(url: string): Promise<boolean> {
  try {
    const response = await fetch(`${url}/health`, {
      signal: AbortSignal.timeout(HEALTH_REQUEST_MS),
    });
    await response.body?.cancel();
    return response.ok;
  } catch {
    return false;
  }
}

/** What stands on the terminal when the cluster serves. */
export function greeting(
  config: Pick<UpConfig, "model" | "servedModelName" | "apiKey" | "shards">,
  url: string,
  redisUrl: string | undefined,
): string {
  const model = config.servedModelName ?? basename(resolve(config.model));
  const [route, request] = existsSync(join(config.model, "tokenizer.json"))
    ? ["chat/completions", { messages: [{ role: "user", content: QUESTION }] }]
    : // Without a tokenizer the model takes and gives token ids.
      ["completions", { prompt: [1, 2, 3], return_token_ids: true }];
  const body = JSON.stringify({ model, ...request, max_tokens: 64 });
  const key =
    config.apiKey === undefined ? "" : " -H 'authorization: Bearer '\"$SWITCHYARD_API_KEY\"";
  const stats =
    redisUrl === undefined
      ? `curl ${url}/metrics`
      : `npx switchyard stats --redis-url ${withoutPassword(redisUrl)}`;
  return [
    `ready ${url}`,
    "",
    "Try:",
    `  curl ${url}/v1/${route} -H 'content-type: application/json'${key} -d ${quoted(body)}`,
    `  ${stats}`,
    ...(config.shards === 0 ? [] : [`  npx switchyard placement --url ${url}`]),
    "",
  ].join("\n");
}

/** A word for a POSIX shell. */
function quoted(text: string): string {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

function withoutPassword(url: string): string {
  return url.replace(/^(rediss?:\/\/[^:@/]*):[^@/]*@/, "$1:PASSWORD@");
}

/** Where a server that listens on this address is reached from here. */
function reachable(host: string): string {
  if (host === "0.0.0.0") return "127.0.0.1";
  return host === "::" ? "::1" : host;
}
