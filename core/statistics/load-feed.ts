/** What the planner asks of the statistics: the load that is ahead, from all routers by Redis or from this one alone. */

import type { RedisConnection } from "../platform/redis.ts";
import { bucketOf, BUCKET_SECONDS, RETENTION_SECONDS, type ModelShape } from "./encoding.ts";
import { addWindow, emptyHistory, forecastLoad, type LoadForecast } from "./forecast.ts";
import {
  countsEveryPair,
  emptyLists,
  listsOfCells,
  togetherPairs,
  TOP_PARTNERS,
  type PairLists,
} from "./pairs.ts";
import { eachBucket, readLists, readQueued } from "./reader.ts";
import type { Statistics } from "./store.ts";
import { SLOW_HALF_LIFE_SECONDS, type CountedWindow, type QueuedTokens } from "./windows.ts";

/** A bucket is complete so many seconds after its end: what routers flush late, or by clocks that are behind, is in it. */
const GRACE_SECONDS = 2;

/** Seconds after which lists of pairs are read again: what they hold changes over minutes. */
const LISTS_SECONDS = 60;

/** What the statistics say at a moment. */
export interface FeedReading {
  readonly forecast: LoadForecast;
  /** Experts of one layer that the same token chooses, for each its most frequent partners, in tokens of a step. */
  readonly together: ReturnType<typeof togetherPairs>;
  /** Tokens per second of late; before the first window those of this router alone. */
  readonly tokensPerSecond: number;
  /** Tokens that the forecast knows of since its first window. */
  readonly tokens: number;
}

/** Follows the statistics; what it has seen is in memory, bounded, and is read again from Redis by whoever comes next. */
export interface LoadFeed {
  /**
   * Takes in the windows that are complete at `now` (Unix seconds) and forecasts. One call at a time. Rejects where Redis
   * does not answer; the next call goes on from there.
   */
  read(now: number): Promise<FeedReading>;
}

/** Where a feed gets its counts from. */
export interface LoadFeedOptions {
  readonly shape: ModelShape;
  readonly modelHash: string;
  /** Absent: the counts of `statistics` alone. */
  readonly redis?: RedisConnection;
  readonly statistics: Pick<Statistics, "snapshot" | "pairs">;
  /** What this router expects to run next: used where Redis does not know; absent: the mix of tasks is that of late. */
  readonly queued?: () => readonly QueuedTokens[];
}

/** Where windows come from, and what belongs to them. */
interface Source {
  /** Hands over the windows that are complete at `now`, each with what was expected at its end to run next. */
  take(
    now: number,
    add: (window: CountedWindow, queued?: readonly QueuedTokens[]) => void,
  ): Promise<void>;
  queued(now: number): Promise<readonly QueuedTokens[]>;
  together(now: number): Promise<PairLists>;
}

/** Starts a feed; the first read with Redis takes in up to the last hour. */
export function createLoadFeed(options: LoadFeedOptions): LoadFeed {
  const { shape, redis } = options;
  const { layers, numExperts, topK } = shape;
  const source = redis === undefined ? memorySource(options) : redisSource(options, redis);
  let history = emptyHistory({ numMoeLayers: layers.length, numExperts, topK });
  let known: readonly QueuedTokens[] = [];
  let began: { readonly at: number; readonly tokens: number } | undefined;
  /** What this router alone has counted: there is no complete window for the first seconds of a load. */
  const own = (now: number) => {
    const { series, steps } = options.statistics.snapshot();
    const tokens = series.reduce((sum, one) => sum + one.tokens, 0);
    began ??= { at: now, tokens };
    const seconds = now - began.at;
    return {
      tokensPerSecond: seconds >= 1 ? (tokens - began.tokens) / seconds : 0,
      ...(steps > 0 && tokens > 0 && { tokensPerStepSoFar: tokens / steps }),
    };
  };
  return {
    read: async (now) => {
      await source.take(now, (window, queued) => {
        history = addWindow(history, window, known);
        known = queued ?? known;
      });
      const queued = await source.queued(now);
      if (redis === undefined) known = queued;
      const early = history.profiles.long.tokens === 0 ? own(now) : undefined;
      const forecast = forecastLoad(history, { queued, ...early });
      const { long } = history.profiles;
      const tokensPerSecond = early?.tokensPerSecond ?? history.profiles.tokensPerSecond;
      const together = togetherPairs(await source.together(now), shape, forecast.tokensPerStep);
      return { forecast, together, tokensPerSecond, tokens: long.tokens };
    },
  };
}

function redisSource(
  { shape, modelHash, queued = () => [] }: LoadFeedOptions,
  redis: RedisConnection,
): Source {
  const everyPair = countsEveryPair(shape, "together");
  let next = 0;
  let cells: Float64Array | undefined;
  let lists = emptyLists(shape.layers.length, shape.numExperts, TOP_PARTNERS);
  let listsAt = -Infinity;
  const fade = 2 ** (-BUCKET_SECONDS / SLOW_HALF_LIFE_SECONDS);
  return {
    take: async (now, add) => {
      next = Math.max(next, bucketOf(now - RETENTION_SECONDS));
      const last = bucketOf(now - GRACE_SECONDS) - 1;
      for await (const bucket of eachBucket(redis, modelHash, { first: next, last })) {
        const { steps, series, together } = bucket;
        add({ seconds: BUCKET_SECONDS, steps, series }, bucket.queued);
        if (together !== undefined) cells = together.map((n, i) => n + fade * (cells?.[i] ?? 0));
        next = bucket.bucket + 1;
      }
    },
    queued: async (now) => {
      const all = await readQueued(redis, modelHash, now);
      return all.length === 0 ? queued() : all;
    },
    together: async (now) => {
      if (everyPair) {
        return cells === undefined ? lists : listsOfCells(shape, "together", cells, TOP_PARTNERS);
      }
      if (now - listsAt >= LISTS_SECONDS) {
        lists = await readLists(redis, modelHash, { shape, kind: "together", now });
        listsAt = now;
      }
      return lists;
    },
  };
}

function memorySource({ statistics, queued = () => [] }: LoadFeedOptions): Source {
  let before: { readonly at: number; readonly window: CountedWindow } | undefined;
  return {
    take: async (now, add) => {
      const seconds = before === undefined ? BUCKET_SECONDS : now - before.at;
      if (seconds < BUCKET_SECONDS) return;
      const { series, steps } = statistics.snapshot();
      const window = { seconds, steps, series };
      add(before === undefined ? window : growth(before.window, window, seconds));
      before = { at: now, window };
    },
    queued: async () => queued(),
    together: async () => statistics.pairs().together,
  };
}

/** What one snapshot has more than an earlier one. */
function growth(before: CountedWindow, after: CountedWindow, seconds: number): CountedWindow {
  const old = new Map(before.series.map((one) => [`${one.task}:${one.phase}`, one]));
  const series = after.series.map((one) => {
    const { tokens = 0, expertTokens } = old.get(`${one.task}:${one.phase}`) ?? {};
    return {
      ...one,
      tokens: one.tokens - tokens,
      expertTokens: one.expertTokens.map((count, i) => count - (expertTokens?.[i] ?? 0)),
    };
  });
  return { seconds, steps: after.steps - before.steps, series };
}
