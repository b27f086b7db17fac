/** Wires who is there, who plans, and what every router works by: the cluster's control plane in one router. */

import { createHash, randomUUID } from "node:crypto";
import { hostname } from "node:os";

import { formatsOf } from "../core/expert-formats.ts";
import type { Checkpoint } from "../core/model/checkpoint/checkpoint.ts";
import type { Logger } from "../core/platform/log.ts";
import { connectRedis, type RedisConnection } from "../core/platform/redis.ts";
import { hostPort } from "../core/platform/service-options.ts";
import type { ModelShape } from "../core/statistics/encoding.ts";
import { createLoadFeed } from "../core/statistics/load-feed.ts";
import type { PairTables } from "../core/statistics/load.ts";
import type { Statistics } from "../core/statistics/store.ts";
import type { QueuedTokens } from "../core/statistics/windows.ts";
import { expertBytes } from "../core/weights.ts";
import type { Cluster } from "./cluster/cluster.ts";
import { createOwnLease, createRedisLease, type Lease } from "./cluster/planning/lease.ts";
import { LoadRate } from "./cluster/planning/load-rate.ts";
import { createRedisMembership } from "./cluster/membership-redis.ts";
import {
  createStaticMembership,
  type Membership,
  sharedLocalBytes,
} from "./cluster/membership-static.ts";
import type { PlanInput } from "./cluster/planning/first-placement.ts";
import { PlacementFollower } from "./cluster/planning/placement-follower.ts";
import { PlacementOutlook } from "./cluster/planning/placement-outlook.ts";
import {
  createMemoryStore,
  createRedisStore,
  placementKeys,
  type PlacementStore,
} from "./cluster/planning/placement-store.ts";
import { sightOf, TokenRate } from "./cluster/planning/router-sights.ts";
import { PlannerLoop } from "./cluster/planning/planner-loop.ts";
import { LEAST_WARMED } from "./cluster/planning/planner-warm-up.ts";
import { PlannerThread } from "./cluster/planning/planner-thread.ts";
import { afterMove, firstStanding, standsFor } from "./cluster/planning/standing.ts";
import type { RouterConfig } from "./config.ts";

/** What the control plane is made of. */
export interface ControlPlaneOptions {
  readonly settings: Pick<
    RouterConfig,
    | "redisUrl"
    | "discover"
    | "minShards"
    | "shards"
    | "shardsTimeout"
    | "planInterval"
    | "minCopies"
    | "placementPolicy"
    | "wire"
    | "host"
  >;
  /** What routed experts may take of this router's own device now, bytes. */
  readonly localBytes: () => number;
  readonly checkpoint: Pick<Checkpoint, "config" | "modelHash" | "overlay">;
  readonly shape: ModelShape;
  readonly statistics: Pick<Statistics, "snapshot" | "tokens" | "pairs" | "steps">;
  /** What this router expects to run next. */
  readonly queued: () => readonly QueuedTokens[];
  readonly cluster: Cluster;
  readonly routerId: string;
  /** What the first placement is made from. */
  readonly first: PlanInput;
  readonly httpPort: number;
  readonly grpcPort: number;
  readonly logger: Logger;
}

/** The control plane of a router. */
export interface ControlPlane {
  readonly cluster: Cluster;
  readonly membership: Membership;
  readonly follower: PlacementFollower;
  readonly planner: PlannerLoop;
  readonly outlook: PlacementOutlook;
  readonly thread: PlannerThread;
  /** What this router has counted of experts that tokens choose together. */
  readonly pairs: () => PairTables;
  /** Gives the lease up, takes the registration back, stops planning. */
  close(): Promise<void>;
}

/** A router that knows its shards waits so long for its Redis before it starts without, milliseconds. */
const REDIS_WAIT_MS = 3_000;

/** Name of this router among those of a model: unlike any other's, also after a restart. */
export function createRouterId(): string {
  return `${hostname()}-${process.pid}-${randomUUID().slice(0, 4)}`;
}

/** Starts to watch members, to follow the placement, and to campaign for planning it. */
export function startControlPlane(options: ControlPlaneOptions): ControlPlane {
  const { settings, checkpoint, shape, statistics, queued, cluster, logger } = options;
  const { config, modelHash, overlay } = checkpoint;
  const redis =
    settings.redisUrl === undefined ? undefined : connectRedis(settings.redisUrl, logger);
  const { membership, store, lease } = createShared(options, redis);
  const updateMembers = () => cluster.setMembers(membership.shards());
  membership.onChange(updateMembers);

  const loadRate = new LoadRate();
  const seconds = () => performance.now() / 1000;
  let standing = firstStanding(seconds());
  const follower = new PlacementFollower({
    store,
    cluster,
    onMoved: (before, after, tookSeconds) => {
      if (after.stagesLeft === 0) standing = afterMove(standing, seconds());
      const formatOf = formatsOf(overlay, after.experts);
      const bytesOf = (layer: number, expert: number) =>
        expertBytes(config, formatOf(layer, expert));
      loadRate.observe(before.placement.layers, after.placement.layers, tookSeconds, bytesOf);
    },
    onChange: () => membership.announce(),
    log: logger,
  });
  const counts = { shape, modelHash, statistics, queued };
  const feed = createLoadFeed({ ...counts, ...(redis && { redis }) });
  const outlook = new PlacementOutlook({
    config,
    overlay,
    wire: settings.wire,
    cluster,
    sights: () => membership.routers().flatMap(({ sight }) => sight ?? []),
    feed,
    ownFeed: redis && createLoadFeed(counts),
    steps: () => statistics.steps(),
    planIntervalSeconds: settings.planInterval,
    minCopies: settings.minCopies,
    policy: settings.placementPolicy,
    loadBytesPerSecond: () => loadRate.bytesPerSecond,
    standsSeconds: () => standsFor(standing, seconds()),
    localBytes: () => sharedLocalBytes(membership),
  });
  const numCells = shape.layers.length * shape.numExperts;
  const thread = new PlannerThread({ warm: numCells >= LEAST_WARMED });
  const aloneAt = performance.now() + REDIS_WAIT_MS;
  const planner = new PlannerLoop({
    store,
    lease,
    membership,
    cluster,
    follower,
    outlook,
    thread,
    first: options.first,
    minShards: settings.discover ? settings.minShards : settings.shards.length,
    patienceMs: settings.discover ? Infinity : settings.shardsTimeout * 1000,
    minCopies: settings.minCopies,
    mayStartAlone: () =>
      !settings.discover && redis?.isReady() === false && performance.now() > aloneAt,
    routerId: options.routerId,
    intervalSeconds: settings.planInterval,
    log: logger,
  });
  return {
    cluster,
    membership,
    follower,
    planner,
    outlook,
    thread,
    pairs: () => statistics.pairs(),
    close: async () => {
      await Promise.all([planner.close(), thread.close(), follower.close()]);
      await lease.close();
      await membership.close();
      redis?.close();
    },
  };
}

/** Routers that agree on a placement: those of a model that find their shards, or those that list the same ones. */
function groupOf(
  modelHash: string,
  { discover, shards }: Pick<RouterConfig, "discover" | "shards">,
): string {
  if (discover) return modelHash;
  const list = createHash("sha256").update(shards.toSorted().join());
  return `${modelHash}-${list.digest("hex").slice(0, 12)}`;
}

/** What routers of a model have in common: in Redis where there is one, else this router's own. */
function createShared(
  options: ControlPlaneOptions,
  redis: RedisConnection | undefined,
): { readonly membership: Membership; readonly store: PlacementStore; readonly lease: Lease } {
  const { settings, checkpoint, cluster, routerId: id, localBytes, logger } = options;
  const epoch = () => cluster.current()?.placement.epoch ?? 0;
  const rate = new TokenRate();
  const sight = () =>
    sightOf(rate.at(performance.now() / 1000, options.statistics.tokens()), cluster.members());
  if (redis === undefined) {
    return {
      membership: createStaticMembership(settings.shards, () => ({
        id,
        epoch: epoch(),
        localBytes: localBytes(),
        sight: sight(),
      })),
      store: createMemoryStore(),
      lease: createOwnLease(),
    };
  }
  const modelHash = groupOf(checkpoint.modelHash, settings);
  const registration = {
    kind: "router",
    id,
    incarnation: randomUUID(),
    httpAddress: hostPort(settings.host, options.httpPort),
    grpcAddress: hostPort(settings.host, options.grpcPort),
  } as const;
  const membership = createRedisMembership({
    redis,
    modelHash,
    self: () => ({ ...registration, epoch: epoch(), localBytes: localBytes(), sight: sight() }),
    ...(!settings.discover && { shards: settings.shards }),
    log: logger,
  });
  const lease = createRedisLease({
    redis,
    key: placementKeys(modelHash).lease,
    log: logger,
    // A router that works by a placement knows more than one that has none yet.
    eligible: () =>
      epoch() > 0 ||
      (membership.seen() && membership.routers().every((router) => router.epoch === 0)),
  });
  membership.onChange(() => lease.campaign());
  return { membership, store: createRedisStore(redis, modelHash), lease };
}
