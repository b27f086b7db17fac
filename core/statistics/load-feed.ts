/** What the planner asks of the statistics: the load that is ahead, from all routers by Redis or from this one alone. */

import type { RedisConnection } from "../platform/redis.ts";
import { bucketOf, BUCKET_SECONDS, RETENTION_SECONDS, type ModelShape } from "./encoding.ts";
import { addWindow, emptyHistory, forecastLoad, type LoadForecast } from "./forecast.ts";
import { seriesOfBuckets } from "./reader.ts";
import type { Statistics } from "./store.ts";
import type { CountedWindow, QueuedTokens } from "./windows.ts";

/** A bucket is complete so many seconds after its end: what routers flush late, or by clocks that are behind, is in it. */
const GRACE_SECONDS = 2;

/** What the statistics say at a moment. */
export interface FeedReading {
  readonly forecast: LoadForecast;
  /** Tokens per second of late; 0 before the first window. */
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
  /** Absent: the counts of `statistics` alone, from the first call on. */
  readonly redis?: RedisConnection;
  readonly statistics: Pick<Statistics, "snapshot">;
  /** What waits and runs in this router; absent: the mix of tasks is that of late. */
  readonly queued?: () => readonly QueuedTokens[];
}

/** Starts a feed; the first read with Redis takes in up to the last hour. */
export function createLoadFeed(options: LoadFeedOptions): LoadFeed {
  const { shape, modelHash, redis, statistics } = options;
  const { layers, numExperts, topK } = shape;
  let history = emptyHistory({ numMoeLayers: layers.length, numExperts, topK });
  const queued = options.queued ?? (() => []);
  let queuedBefore: readonly QueuedTokens[] = [];
  const add = (window: CountedWindow) => {
    history = addWindow(history, window, queuedBefore);
  };
  const take =
    redis === undefined ? memoryWindows(statistics, add) : redisWindows(redis, modelHash, add);
  return {
    read: async (now) => {
      await take(now);
      queuedBefore = queued();
      const forecast = forecastLoad(history, { queued: queuedBefore });
      const { tokensPerSecond, long } = history.profiles;
      return { forecast, tokensPerSecond, tokens: long.tokens };
    },
  };
}

type AddWindow = (window: CountedWindow) => void;

/** Takes in what is complete at a time, window by window: what a failure leaves out is for the next call. */
function redisWindows(
  redis: RedisConnection,
  modelHash: string,
  add: AddWindow,
): (now: number) => Promise<void> {
  let next = 0;
  return async (now) => {
    next = Math.max(next, bucketOf(now - RETENTION_SECONDS));
    const span = { first: next, last: bucketOf(now - GRACE_SECONDS) - 1 };
    for await (const { bucket, series } of seriesOfBuckets(redis, modelHash, span)) {
      add({ seconds: BUCKET_SECONDS, steps: 0, series });
      next = bucket + 1;
    }
  };
}

function memoryWindows(
  statistics: Pick<Statistics, "snapshot">,
  add: AddWindow,
): (now: number) => Promise<void> {
  let before: { readonly at: number; readonly window: CountedWindow } | undefined;
  return async (now) => {
    const seconds = before === undefined ? BUCKET_SECONDS : now - before.at;
    if (seconds < BUCKET_SECONDS) return;
    const window = { seconds, steps: 0, series: statistics.snapshot().series };
    add(before === undefined ? window : growth(before.window, window, seconds));
    before = { at: now, window };
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
