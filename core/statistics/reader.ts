/** Reads the routing statistics of all routers back from Redis. */

import type { RedisConnection } from "../platform/redis.ts";
import { seriesCells } from "./counters.ts";
import {
  bucketOf,
  BUCKET_SECONDS,
  CELL_BYTES,
  decodeCells,
  decodeQueued,
  decodeSeries,
  modelKeys,
  MODELS_KEY,
  parseSeriesName,
  RETENTION_SECONDS,
  type ModelShape,
  type SeriesSum,
} from "./encoding.ts";
import type { Bucket, PairTables } from "./load.ts";
import { decodeLists } from "./pair-encoding.ts";
import {
  countsEveryPair,
  listsOfCells,
  pairCells,
  pairLayers,
  sumLists,
  TOP_PARTNERS,
  type PairKind,
  type PairLists,
} from "./pairs.ts";
import type { QueuedTokens } from "./windows.ts";

/** Bytes that one command reads at most, where a single string is not more. */
const BYTES_PER_READ = 4 * 1024 * 1024;

/** Counts that are read: from what is over `windowSeconds` ago to `now`, Unix seconds. */
export interface ReadWindow {
  readonly windowSeconds: number;
  readonly now: number;
}

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
  { windowSeconds, now }: ReadWindow,
): Promise<{ readonly shape: ModelShape; readonly buckets: Bucket[] }> {
  const first = bucketOf(now - windowSeconds);
  const { shape, names } = await readNames(redis, modelHash, first);
  if (shape === undefined) throw new Error(`no statistics of model ${modelHash} in this Redis`);
  const buckets: Bucket[] = [];
  for (let bucket = first; bucket <= bucketOf(now); bucket++) {
    const series = await readSeries(redis, modelHash, { shape, names, bucket });
    if (series.length > 0) buckets.push({ startedAt: bucket * BUCKET_SECONDS, series });
  }
  return { shape, buckets };
}

/** What all routers counted in ten seconds, and what they expected at their end to run next. */
export interface ReadBucket {
  readonly bucket: number;
  readonly steps: number;
  readonly series: readonly SeriesSum[];
  readonly queued: readonly QueuedTokens[];
  /** Cells of the pairs within a layer; undefined where none were counted, or the model has lists instead. */
  readonly together?: Float64Array;
}

/** One model's buckets from `first` to `last`, oldest first, one at a time; nothing where Redis does not know the model. */
export async function* eachBucket(
  redis: RedisConnection,
  modelHash: string,
  { first, last }: { readonly first: number; readonly last: number },
): AsyncGenerator<ReadBucket, void> {
  if (last < first) return;
  const { shape, names } = await readNames(redis, modelHash, first);
  if (shape === undefined) return;
  const keys = modelKeys(modelHash);
  for (let bucket = first; bucket <= last; bucket++) {
    const series = await readSeries(redis, modelHash, { shape, names, bucket });
    const [steps, queued] = await redis.pipeline([
      ["GET", keys.steps(bucket)],
      ["HGETALL", keys.queued(bucket)],
    ]);
    const together = await readCells(redis, modelHash, { shape, kind: "together", bucket });
    yield {
      bucket,
      steps: decodeCells(steps as Buffer | null, 1)[0],
      series,
      queued: decodeQueued(queued as Buffer[]),
      ...(together && { together }),
    };
  }
}

/** What all routers expect at `now` to run next, as of their last flush in this bucket or the one before. */
export async function readQueued(
  redis: RedisConnection,
  modelHash: string,
  now: number,
): Promise<QueuedTokens[]> {
  const keys = modelKeys(modelHash);
  const bucket = bucketOf(now);
  const replies = await redis.pipeline([
    ["HGETALL", keys.queued(bucket - 1)],
    ["HGETALL", keys.queued(bucket)],
  ]);
  return decodeQueued((replies as Buffer[][]).flat());
}

/** Most frequent partners of every expert: of the window, or where a model has lists, of about the last hour. */
export async function readPairs(
  redis: RedisConnection,
  modelHash: string,
  window: ReadWindow & { readonly shape: ModelShape },
): Promise<PairTables> {
  return {
    together: await readKind(redis, modelHash, { ...window, kind: "together" }),
    next: await readKind(redis, modelHash, { ...window, kind: "next" }),
  };
}

/** The same of one kind, from the lists that writers keep where a model has too many pairs for cells. */
export async function readLists(
  redis: RedisConnection,
  modelHash: string,
  {
    shape,
    kind,
    now,
  }: { readonly shape: ModelShape; readonly kind: PairKind; readonly now: number },
): Promise<PairLists> {
  const keys = modelKeys(modelHash);
  const numLayers = pairLayers(shape, kind);
  const [writers] = await redis.pipeline([
    ["ZRANGEBYSCORE", keys.writers, Math.floor(now - RETENTION_SECONDS), "+inf"],
  ]);
  let sum = sumLists(shape.numExperts, [], numLayers, TOP_PARTNERS);
  for (const writer of writers as Buffer[]) {
    const [fields] = await redis.pipeline([["HGETALL", keys.pairs(String(writer))]]);
    const lists = decodeLists(fields as Buffer[], kind, numLayers, shape);
    sum = sumLists(shape.numExperts, [sum, lists], numLayers, TOP_PARTNERS);
  }
  return sum;
}

async function readKind(
  redis: RedisConnection,
  modelHash: string,
  {
    shape,
    kind,
    now,
    windowSeconds,
  }: ReadWindow & { readonly shape: ModelShape; readonly kind: PairKind },
): Promise<PairLists> {
  if (!countsEveryPair(shape, kind)) return readLists(redis, modelHash, { shape, kind, now });
  const sum = new Float64Array(pairLayers(shape, kind) * pairCells(shape, kind));
  for (let bucket = bucketOf(now - windowSeconds); bucket <= bucketOf(now); bucket++) {
    const cells = await readCells(redis, modelHash, { shape, kind, bucket });
    cells?.forEach((count, i) => (sum[i] += count));
  }
  return listsOfCells(shape, kind, sum, TOP_PARTNERS);
}

async function readCells(
  redis: RedisConnection,
  modelHash: string,
  {
    shape,
    kind,
    bucket,
  }: { readonly shape: ModelShape; readonly kind: PairKind; readonly bucket: number },
): Promise<Float64Array | undefined> {
  if (!countsEveryPair(shape, kind)) return undefined;
  const [bytes] = await redis.pipeline([["GET", modelKeys(modelHash).allPairs(bucket, kind)]]);
  if (bytes === null) return undefined;
  return decodeCells(bytes as Buffer, pairLayers(shape, kind) * pairCells(shape, kind));
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

async function readSeries(
  redis: RedisConnection,
  modelHash: string,
  {
    shape,
    names,
    bucket,
  }: { readonly shape: ModelShape; readonly names: readonly string[]; readonly bucket: number },
): Promise<SeriesSum[]> {
  const keys = modelKeys(modelHash);
  const atOnce = Math.max(1, Math.floor(BYTES_PER_READ / (seriesCells(shape) * CELL_BYTES)));
  const series: SeriesSum[] = [];
  for (let from = 0; from < names.length; from += atOnce) {
    const some = names.slice(from, from + atOnce);
    const [held] = (await redis.pipeline([
      ["MGET", ...some.map((name) => keys.bucket(bucket, name))],
    ])) as (Buffer | null)[][];
    for (const [i, name] of some.entries()) {
      if (held[i] !== null) series.push(decodeSeries(name, held[i], shape));
    }
  }
  return series;
}

function parseShape(reply: Buffer | null): ModelShape | undefined {
  return reply === null ? undefined : (JSON.parse(reply.toString()) as ModelShape);
}
