/** Routing statistics of a model as they stand in Redis. */

import type { RedisConnection } from "../../core/platform/redis.ts";
import { sumBuckets, type StatisticsSum } from "../../core/statistics/load.ts";
import { readBuckets, readPairs, type ReadWindow } from "../../core/statistics/reader.ts";

/** Counts over the last `windowSeconds`, up to a bucket more. Rejects where Redis has none of the model. */
export async function readStatistics(
  redis: RedisConnection,
  modelHash: string,
  window: ReadWindow,
): Promise<StatisticsSum> {
  const { shape, buckets } = await readBuckets(redis, modelHash, window);
  return {
    ...sumBuckets(shape, buckets),
    pairs: await readPairs(redis, modelHash, { ...window, shape }),
  };
}
