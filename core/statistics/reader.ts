/** Reads the routing statistics of all routers back from Redis. */

import type { RedisConnection } from "../platform/redis.ts";
import { coactivationCells } from "./counters.ts";
import {
  bucketOf,
  BUCKET_SECONDS,
  decodeCells,
  decodeSeries,
  modelKeys,
  MODELS_KEY,
  parseSeriesName,
  type ModelShape,
  type SeriesSum,
} from "./encoding.ts";
import { sumBuckets, type Bucket, type StatisticsSum } from "./load.ts";

/** Strings read by one command at most. */
const KEYS_PER_READ = 256;

/** A model that has statistics in Redis. */
export interface ListedModel {
  readonly modelHash: string;
  /** Absent where only the list still knows the model. */
  readonly shape?: ModelShape;
  /** Unix time of the last flush, seconds. */
  readonly lastFlushAt: number;
}

/** Models with statistics, the one flushed last first. */
export async function listModels(redis: RedisConnection): Promise<ListedModel[]> {
  const [reply] = await redis.pipeline([["ZREVRANGE", MODELS_KEY, 0, -1, "WITHSCORES"]]);
  const flat = (reply as Buffer[]).map(String);
  const models = flat.flatMap((modelHash, i) =>
    i % 2 === 0 ? [{ modelHash, lastFlushAt: Number(flat[i + 1]) }] : [],
  );
  if (models.length === 0) return [];
  const shapes = await redis.pipeline(
    models.map(({ modelHash }) => ["GET", modelKeys(modelHash).shape] as const),
  );
  return models.map(({ modelHash, lastFlushAt }, i) => ({
    modelHash,
    lastFlushAt,
    shape: parseShape(shapes[i] as Buffer | null),
  }));
}

/** Buckets of one model that overlap the last `windowSeconds`, oldest first; those without counts are left out. */
export async function readBuckets(
  redis: RedisConnection,
  modelHash: string,
  { windowSeconds, now }: { readonly windowSeconds: number; readonly now: number },
): Promise<{ readonly shape: ModelShape; readonly buckets: Bucket[] }> {
  const first = bucketOf(now - windowSeconds);
  const { shape, names } = await readNames(redis, modelHash, first);
  if (shape === undefined) throw new Error(`no statistics of model ${modelHash} in this Redis`);
  const buckets: Bucket[] = [];
  for (let bucket = first; bucket <= bucketOf(now); bucket++) {
    const held = await readBucket(redis, modelHash, { shape, names, bucket });
    if (held !== undefined) buckets.push(held);
  }
  return { shape, buckets };
}

/**
 * Series of one model in the buckets from `first` to `last`, oldest first, one at a time; undefined for those without
 * counts. Nothing where Redis does not know the model.
 */
export async function* seriesOfBuckets(
  redis: RedisConnection,
  modelHash: string,
  { first, last }: { readonly first: number; readonly last: number },
): AsyncGenerator<{ readonly bucket: number; readonly series: SeriesSum[] }, void> {
  const { shape, names } = await readNames(redis, modelHash, first);
  if (shape === undefined) return;
  const keys = modelKeys(modelHash);
  for (let bucket = first; bucket <= last; bucket++) {
    const held = await readStrings(
      redis,
      names.map((name) => keys.bucket(bucket, name)),
    );
    yield { bucket, series: decodeAll(names, held, shape) };
  }
}

async function readNames(redis: RedisConnection, modelHash: string, first: number) {
  const keys = modelKeys(modelHash);
  const [shapeReply, seriesReply] = await redis.pipeline([
    ["GET", keys.shape],
    ["ZRANGEBYSCORE", keys.series, first * BUCKET_SECONDS, "+inf"],
  ]);
  const names = (seriesReply as Buffer[])
    .map(String)
    .filter((name) => parseSeriesName(name) !== undefined)
    .sort();
  return { shape: parseShape(shapeReply as Buffer | null), names };
}

async function readBucket(
  redis: RedisConnection,
  modelHash: string,
  {
    shape,
    names,
    bucket,
  }: { readonly shape: ModelShape; readonly names: readonly string[]; readonly bucket: number },
): Promise<Bucket | undefined> {
  const keys = modelKeys(modelHash);
  const [pairs, ...held] = await readStrings(redis, [
    keys.coactivation(bucket),
    ...names.map((name) => keys.bucket(bucket, name)),
  ]);
  const series = decodeAll(names, held, shape);
  if (series.length === 0 && pairs === null) return undefined;
  return {
    startedAt: bucket * BUCKET_SECONDS,
    series,
    coactivation: decodeCells(pairs, coactivationCells(shape)),
  };
}

function decodeAll(
  names: readonly string[],
  held: readonly (Buffer | null)[],
  shape: ModelShape,
): SeriesSum[] {
  return names.flatMap((name, i) => (held[i] === null ? [] : [decodeSeries(name, held[i], shape)]));
}

/** Counts of one model over the last `windowSeconds`, up to a bucket more. Rejects where Redis has none of the model. */
export async function readStatistics(
  redis: RedisConnection,
  modelHash: string,
  window: { readonly windowSeconds: number; readonly now: number },
): Promise<StatisticsSum> {
  const { shape, buckets } = await readBuckets(redis, modelHash, window);
  return sumBuckets(shape, buckets);
}

async function readStrings(
  redis: RedisConnection,
  keys: readonly string[],
): Promise<(Buffer | null)[]> {
  const commands: (readonly [string, ...string[]])[] = [];
  for (let i = 0; i < keys.length; i += KEYS_PER_READ) {
    commands.push(["MGET", ...keys.slice(i, i + KEYS_PER_READ)]);
  }
  const replies = await redis.pipeline(commands);
  return (replies as (Buffer | null)[][]).flat();
}

function parseShape(reply: Buffer | null): ModelShape | undefined {
  return reply === null ? undefined : (JSON.parse(reply.toString()) as ModelShape);
}
