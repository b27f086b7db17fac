/** What a router knows that placements are planned from: its shards as they are, and the load that is ahead. */

import { formatsOf } from "../../../core/expert-formats.ts";
import type { RouterSight } from "../../../core/membership.ts";
import type { ModelConfig } from "../../../core/model/config.ts";
import type { ModelOverlay } from "../../../core/model/overlay.ts";
import type { Policy } from "../../../core/placement/input.ts";
import { LOCAL_RANK } from "../../../core/placement/placement.ts";
import { RedisUnavailableError } from "../../../core/platform/redis.ts";
import type { LoadForecast } from "../../../core/statistics/forecast.ts";
import type { FeedReading, LoadFeed } from "../../../core/statistics/load-feed.ts";
import type { WireSetting } from "../../../core/wire-rows.ts";
import type { Cluster } from "../cluster.ts";
import type { MemberView } from "../cluster-member.ts";
import type { ClusterPlacement } from "./first-placement.ts";
import { bytesIn, rankBytes } from "./held-bytes.ts";
import type { PlanFacts, ShardFacts } from "./planner-input.ts";
import { speedForAll } from "./router-sights.ts";
import { steadySecondsPerPair } from "../shards/steady-speed.ts";

/** What an outlook is made of. */
export interface OutlookOptions {
  readonly config: ModelConfig;
  readonly overlay: ModelOverlay | undefined;
  readonly wire: WireSetting;
  readonly cluster: Pick<Cluster, "members">;
  /** What each router sees of the shards, this one among them. */
  readonly sights: () => readonly RouterSight[];
  readonly feed: LoadFeed;
  /** What this router alone has counted; absent: the feed needs no Redis. */
  readonly ownFeed?: LoadFeed | undefined;
  /** Loads of single steps of late [numMoeLayers, numExperts] each; none where they are too few. */
  readonly steps: () => readonly Float64Array[];
  /** Seconds between two plans. */
  readonly planIntervalSeconds: number;
  /** Copies of each expert at least, as far as memory goes. */
  readonly minCopies: number;
  /** How experts are placed. */
  readonly policy: Policy;
  /** Memory that every router's own device has for routed experts; 0 where one has none. */
  readonly localBytes: () => number;
  /** Bytes of experts that a shard loads in a second; undefined where no move has shown it. */
  readonly loadBytesPerSecond: () => number | undefined;
  /** Seconds that a placement is expected to stand: what its moves cost is spread over the steps in them. */
  readonly standsSeconds: () => number;
}

/** A reading of the statistics serves for this long, milliseconds. */
const READING_MS = 1_000;

/** Part of the time between two plans that one may spend on loading experts. */
const LOADING_PART = 0.5;

/** Of a shard that says nothing of it, bytes per second. */
const LOAD_BYTES_PER_SECOND = 2e8;

/** The shard can be planned with: it is connected, and not found wrong. */
export function isUsable(member: MemberView, now: number): boolean {
  const { rank, hello, state, quarantinedUntil = 0 } = member;
  return rank !== undefined && hello !== undefined && state !== "away" && quarantinedUntil <= now;
}

/** The shard can be sent rows of the placement in use: it holds all that this gives it, and was not found wrong. */
export function isServing(member: MemberView, now: number): boolean {
  return isUsable(member, now) && member.state !== "loading";
}

/** What the planner is told of usable shards, of which `isEmpty` says whether they hold nothing of what they are to. */
function shardFacts(
  members: readonly MemberView[],
  sights: readonly RouterSight[],
  loadBytesPerSecond: number | undefined,
  isEmpty: (member: MemberView) => boolean,
): ShardFacts[] {
  const speeds = members.map(({ rank = 0, steady }) => {
    const forAll = speedForAll(sights, rank) ?? steady;
    // To a router's own device there is no way.
    return rank === LOCAL_RANK ? { ...forAll, bytesPerSecond: Infinity } : forAll;
  });
  const secondsPerPair = steadySecondsPerPair(
    members.map(({ hello }, i) => ({
      measured: speeds[i],
      pairsPerSecond: hello?.pairsPerSecond ?? 0,
    })),
  );
  return members.map((member, i) => ({
    rank: member.rank ?? 0,
    memoryBytes: member.hello?.memoryBytes ?? 0,
    draining: member.status?.draining ?? false,
    secondsPerPair: secondsPerPair[i],
    rttSeconds: speeds[i].roundTripSeconds,
    bytesPerSecond: speeds[i].bytesPerSecond,
    loadBytesPerSecond,
    spread: speeds[i].spread,
    formats: member.hello?.formatSpeeds ?? [],
    ...(isEmpty(member) && { isEmpty: true }),
  }));
}

/** A copy of rank local is on every router: it has the memory that all of them have. */
function sharedByAll(shards: readonly ShardFacts[], localBytes: number): ShardFacts[] {
  return shards.flatMap((shard) => {
    if (shard.rank !== LOCAL_RANK) return [shard];
    return localBytes === 0 ? [] : [Object.assign(shard, { memoryBytes: localBytes })];
  });
}

/** Reads the statistics for plans, one reading at a time. */
export class PlacementOutlook {
  readonly #options: OutlookOptions;
  #reading: Promise<FeedReading> | undefined;
  #readAt = -Infinity;
  #last: FeedReading | undefined;

  constructor(options: OutlookOptions) {
    this.#options = options;
  }

  /** What a plan from `current` is made from. */
  async facts(current: ClusterPlacement): Promise<PlanFacts> {
    const { config, overlay, wire, cluster, planIntervalSeconds, minCopies, policy } =
      this.#options;
    const standsSeconds = this.#options.standsSeconds();
    const { forecast, together, tokensPerSecond } = await this.#read();
    const now = Date.now();
    const usable = cluster.members().filter((member) => isUsable(member, now));
    const loadSpeed = this.#options.loadBytesPerSecond();
    const formatOf = formatsOf(overlay, current.experts);
    const bytesOf = bytesIn({ config, formatOf });
    const { epoch, layers } = current.placement;
    const isEmpty = ({ rank = 0, epochs, hello }: MemberView) =>
      !epochs.includes(epoch) && rankBytes(bytesOf, layers, rank) > (hello?.memoryBytes ?? 0);
    const shards = sharedByAll(
      shardFacts(usable, this.#options.sights(), loadSpeed, isEmpty),
      this.#options.localBytes(),
    );
    const loadRate = shards.reduce(
      (sum, { loadBytesPerSecond = LOAD_BYTES_PER_SECOND }) => sum + loadBytesPerSecond,
      0,
    );
    return {
      config,
      formatOf,
      wire,
      shards,
      expected: forecast,
      steps: this.#options.steps(),
      together,
      current: current.placement,
      moves: {
        bytes: loadRate * planIntervalSeconds * LOADING_PART,
        // Without traffic there is next to nothing that a move could save.
        steps: Math.max(1, (tokensPerSecond / forecast.tokensPerStep) * standsSeconds),
      },
      minCopies,
      policy,
    };
  }

  /** What the load ahead is expected to be. */
  async forecast(): Promise<LoadForecast> {
    return (await this.#read()).forecast;
  }

  #read(): Promise<FeedReading> {
    if (this.#reading === undefined || performance.now() - this.#readAt > READING_MS) {
      const before = this.#reading ?? Promise.resolve();
      this.#readAt = performance.now();
      this.#reading = before.then(
        () => this.#readNow(),
        () => this.#readNow(),
      );
    }
    return this.#reading;
  }

  async #readNow(): Promise<FeedReading> {
    try {
      this.#last = await this.#options.feed.read(Date.now() / 1000);
    } catch (error) {
      if (!(error instanceof RedisUnavailableError)) throw error;
      // The last one is better than none, and this router's own as well.
      const { ownFeed } = this.#options;
      if (this.#last !== undefined) return this.#last;
      if (ownFeed === undefined) throw error;
      return ownFeed.read(Date.now() / 1000);
    }
    return this.#last;
  }
}
