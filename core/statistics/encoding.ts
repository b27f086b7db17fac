/**
 * How routing statistics stand in Redis, version 2.
 *
 * Numbers are unsigned 48-bit big-endian integers ("cells", 6 bytes); missing bytes at the end of a string are zeros.
 * Times are Unix seconds of the writers' clocks. A bucket is the 10 seconds from `10 · bucket` on and holds what was
 * flushed in them: at most one second late, longer where Redis was away. `{hash}` is the model hash in braces, so that
 * a Redis Cluster keeps a model's keys together. Keys of version 1 are left to expire.
 *
 * | key                                     | type   | content                                                         | expires after |
 * | --------------------------------------- | ------ | --------------------------------------------------------------- | ------------- |
 * | `switchyard:v2:models`                  | zset   | model hash, scored by the time of its last flush                | 1 day         |
 * | `switchyard:v2:{hash}:shape`            | string | JSON of ModelShape                                              | 1 day         |
 * | `switchyard:v2:{hash}:series`           | zset   | `task:phase`, scored by the time of its last flush              | 1 day         |
 * | `switchyard:v2:{hash}:b<bucket>:<task>:<phase>` | string | cells: tokens, then for each MoE layer and expert its tokens and its gate weights in millionths [1 + numMoeLayers · numExperts · 2] | 1 hour; sooner where an hour of all series would take over 256 MiB, never under 2 minutes |
 * | `switchyard:v2:{hash}:b<bucket>:steps`  | string | cells: steps [1]                                                | 1 hour        |
 * | `switchyard:v2:{hash}:b<bucket>:queued` | hash   | writer → JSON: what it expected at its last flush to run next, task:phase → tokens | 1 hour |
 * | `switchyard:v2:{hash}:b<bucket>:together` | string | cells: tokens with two experts in one MoE layer, as pairs.ts orders them [numMoeLayers, numExperts · (numExperts - 1) / 2] | 1 hour; sooner where an hour would take over 64 MiB, never under 1 minute |
 * | `switchyard:v2:{hash}:b<bucket>:next`   | string | cells [numMoeLayers - 1, numExperts, numExperts]: tokens with expert a in a MoE layer and expert b in the next | the same |
 * | `switchyard:v2:{hash}:pairs:<writer>`   | hash   | instead of the last two where a model has too many pairs (pairs.ts): `together:<l>` and `next:<l>` → an exponential window of what one writer counted: all pairs as a cell, then for each expert 16 times the partner's id u16 and the tokens with both as a cell | 1 hour |
 * | `switchyard:v2:{hash}:writers`          | zset   | writers with pairs, at most 16, scored by the time of their last | 1 day        |
 * | `switchyard:v2:{hash}:flushed:<writer>` | string | number of the writer's last flush that was added                | 1 day         |
 *
 * What adds up is added by one script, atomically. Writers number their flushes; the script adds a number once, so a
 * flush whose outcome is unknown (no answer in time, connection lost) is sent again until it is answered and counts
 * exactly once. Cells stop at 2^48 - 1 instead of wrapping. What a writer overwrites is its own.
 */

import { seriesCells, WEIGHT_UNITS, type SeriesCounts } from "./counters.ts";
import type { RoutingShape, CountedPhase } from "./routed-step.ts";
import { countsEveryPair, pairCells, PAIR_KINDS, pairLayers, type PairKind } from "./pairs.ts";
import type { QueuedTokens } from "./windows.ts";

/** Seconds of a bucket. */
export const BUCKET_SECONDS = 10;

/** Bytes of a cell. */
export const CELL_BYTES = 6;

/** Seconds that a bucket is kept. */
export const RETENTION_SECONDS = 3600;

const INDEX_RETENTION_SECONDS = 86_400;
const PAIR_BYTES = 64 * 1024 * 1024;
const SERIES_BYTES = 256 * 1024 * 1024;
/** Writers whose lists of pairs are kept: routers that serve, and those of the last hour that ended. */
const MAX_WRITERS = 16;
const MAX_CELL = 2 ** 48 - 1;
/** Zeros up to this many are sent along: cheaper than to begin a new run. */
const MAX_GAP = 4;
const RUN_HEADER_BYTES = 8;

/** A model whose statistics are in Redis. */
export interface ModelShape extends RoutingShape {
  readonly modelName: string;
}

/** Key of the list of models. */
export const MODELS_KEY = "switchyard:v2:models";

/** Keys of one model. */
export function modelKeys(modelHash: string) {
  const prefix = `switchyard:v2:{${modelHash}}`;
  return {
    shape: `${prefix}:shape`,
    series: `${prefix}:series`,
    flushed: (writer: string) => `${prefix}:flushed:${writer}`,
    bucket: (bucket: number, series: string) => `${prefix}:b${bucket}:${series}`,
    steps: (bucket: number) => `${prefix}:b${bucket}:steps`,
    queued: (bucket: number) => `${prefix}:b${bucket}:queued`,
    allPairs: (bucket: number, kind: PairKind) => `${prefix}:b${bucket}:${kind}`,
    pairs: (writer: string) => `${prefix}:pairs:${writer}`,
    writers: `${prefix}:writers`,
  };
}

/** Name of a series: what the series zset holds. */
export function seriesName(task: string, phase: CountedPhase): string {
  return `${task}:${phase}`;
}

/** Task and phase of a series name; undefined where it is none. */
export function parseSeriesName(
  name: string,
): { readonly task: string; readonly phase: CountedPhase } | undefined {
  const [task, phase, ...rest] = name.split(":");
  if (rest.length > 0 || (phase !== "prefill" && phase !== "decode")) return undefined;
  return { task, phase };
}

/** The bucket of a Unix time in seconds. */
export function bucketOf(seconds: number): number {
  return Math.floor(seconds / BUCKET_SECONDS);
}

/** Seconds that a bucket's pairs are kept where each has a cell. */
export function pairRetention(shape: RoutingShape): number {
  const kinds = PAIR_KINDS.filter((kind) => countsEveryPair(shape, kind));
  const cells = kinds.reduce(
    (sum, kind) => sum + pairLayers(shape, kind) * pairCells(shape, kind),
    0,
  );
  return retention(PAIR_BYTES, cells, 60);
}

/** Seconds that a bucket's series are kept where there are so many. */
export function seriesRetention(shape: RoutingShape, numSeries: number): number {
  return retention(SERIES_BYTES, numSeries * seriesCells(shape), 120);
}

/** Seconds of buckets that fit `bytes`, between `least` and RETENTION_SECONDS. */
function retention(bytes: number, cellsPerBucket: number, least: number): number {
  const buckets = Math.floor(bytes / (cellsPerBucket * CELL_BYTES + 1));
  return Math.min(RETENTION_SECONDS, Math.max(least, buckets * BUCKET_SECONDS));
}

/**
 * What `values` gained over `baseline` between two indices, as runs of cells: offset in the Redis string in bytes u32,
 * number of cells u32, cells. The string has the order of `values`.
 * @returns bytes, empty where nothing grew; `cells` counts the cells in them
 */
export function encodeGrowth(
  values: Float64Array,
  baseline: Float64Array,
  from: number,
  to: number,
): { readonly bytes: Buffer; readonly cells: number } {
  const runs: { start: number; end: number }[] = [];
  let cells = 0;
  for (let i = from; i < to; i++) {
    if (values[i] === baseline[i]) continue;
    const last = runs.at(-1);
    if (last !== undefined && i - last.end <= MAX_GAP) {
      cells += i + 1 - last.end;
      last.end = i + 1;
    } else {
      runs.push({ start: i, end: i + 1 });
      cells++;
    }
  }
  const bytes = Buffer.allocUnsafe(runs.length * RUN_HEADER_BYTES + cells * CELL_BYTES);
  let at = 0;
  for (const { start, end } of runs) {
    at = bytes.writeUInt32BE(start * CELL_BYTES, at);
    at = bytes.writeUInt32BE(end - start, at);
    for (let i = start; i < end; i++) {
      at = bytes.writeUIntBE(Math.min(values[i] - baseline[i], MAX_CELL), at, CELL_BYTES);
    }
  }
  return { bytes, cells };
}

/** Cells of a Redis string as numbers [length]; null is all zeros. */
export function decodeCells(bytes: Buffer | null, length: number): Float64Array {
  const values = new Float64Array(length);
  const held = bytes === null ? 0 : Math.min(length, Math.floor(bytes.length / CELL_BYTES));
  for (let i = 0; i < held; i++) values[i] = bytes!.readUIntBE(i * CELL_BYTES, CELL_BYTES);
  return values;
}

/** Counts of one task and phase as readers see them. */
export interface SeriesSum {
  readonly task: string;
  readonly phase: CountedPhase;
  readonly tokens: number;
  /** Tokens [numMoeLayers, numExperts]. */
  readonly expertTokens: Float64Array;
  /** Sums of gate weights [numMoeLayers, numExperts]. */
  readonly weightSums: Float64Array;
}

/** Counts of a series' Redis string. */
export function decodeSeries(name: string, bytes: Buffer | null, shape: RoutingShape): SeriesSum {
  const key = parseSeriesName(name);
  if (key === undefined) throw new Error(`statistics series "${name}": expected task:phase`);
  return seriesSum({ ...key, cells: decodeCells(bytes, seriesCells(shape)) });
}

/** Counts as readers see them. */
export function seriesSum({ task, phase, cells }: SeriesCounts): SeriesSum {
  const numPairs = (cells.length - 1) / 2;
  const expertTokens = new Float64Array(numPairs);
  const weightSums = new Float64Array(numPairs);
  for (let i = 0; i < numPairs; i++) {
    expertTokens[i] = cells[1 + 2 * i];
    weightSums[i] = cells[2 + 2 * i] / WEIGHT_UNITS;
  }
  return { task, phase, tokens: cells[0], expertTokens, weightSums };
}

/** One string that a flush adds to. */
export interface FlushPart {
  readonly key: string;
  /** Runs as encodeGrowth makes them. */
  readonly runs: Buffer;
  readonly expireSeconds: number;
}

/**
 * Adds a flush once. KEYS: marker, then the strings; ARGV: number of the flush, marker's expiry, then per string its
 * expiry and its runs. Answers 1 where it added, 0 where it had been added before.
 */
const ADD_ONCE = `
local sequence = tonumber(ARGV[1])
if tonumber(redis.call('GET', KEYS[1]) or '0') >= sequence then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
for k = 2, #KEYS do
  local key, runs, at = KEYS[k], ARGV[2 * k], 1
  while at <= #runs do
    local offset, count
    offset, count, at = struct.unpack('>I4I4', runs, at)
    local size = count * 6
    local old = redis.call('GETRANGE', key, offset, offset + size - 1)
    if #old < size then old = old .. string.rep('\\0', size - #old) end
    local sums = {}
    for i = 1, count do
      local sum = struct.unpack('>I6', runs, at) + struct.unpack('>I6', old, i * 6 - 5)
      if sum > 281474976710655 then sum = 281474976710655 end
      sums[i] = struct.pack('>I6', sum)
      at = at + 6
    end
    redis.call('SETRANGE', key, offset, table.concat(sums))
  end
  redis.call('EXPIRE', key, ARGV[2 * k - 1])
end
return 1
`;

/** The commands of one flush, to be sent in one pipeline; sending them again is harmless. */
export function flushCommands(flush: {
  readonly modelHash: string;
  readonly shape: ModelShape;
  readonly writer: string;
  /** Number of the flush: 1, 2, 3 … per writer. */
  readonly sequence: number;
  /** Unix time, seconds. */
  readonly now: number;
  /** Names of the series that grew. */
  readonly series: readonly string[];
  readonly parts: readonly FlushPart[];
  /** Lists of pairs that changed, by field. */
  readonly lists: readonly (readonly [field: string, bytes: Buffer])[];
}): (readonly [string, ...(string | number | Buffer)[]])[] {
  const keys = modelKeys(flush.modelHash);
  const { parts, now } = flush;
  const expiry = String(INDEX_RETENTION_SECONDS);
  const { modelName, layers, numExperts, topK } = flush.shape;
  const shape = JSON.stringify({ modelName, layers, numExperts, topK });
  const stale = `(${now - INDEX_RETENTION_SECONDS}`;
  return [
    [
      "EVAL",
      ADD_ONCE,
      parts.length + 1,
      keys.flushed(flush.writer),
      ...parts.map((part) => part.key),
      flush.sequence,
      expiry,
      ...parts.flatMap((part) => [part.expireSeconds, part.runs]),
    ],
    ["SET", keys.shape, shape, "EX", expiry],
    ...(flush.lists.length === 0
      ? []
      : [
          ["HSET", keys.pairs(flush.writer), ...flush.lists.flat()] as const,
          ["EXPIRE", keys.pairs(flush.writer), RETENTION_SECONDS] as const,
          ["ZADD", keys.writers, now, flush.writer] as const,
          ["ZREMRANGEBYRANK", keys.writers, 0, -1 - MAX_WRITERS] as const,
          ["EXPIRE", keys.writers, expiry] as const,
        ]),
    ...(flush.series.length === 0
      ? []
      : [
          ["ZADD", keys.series, ...flush.series.flatMap((name) => [now, name])] as const,
          ["EXPIRE", keys.series, expiry] as const,
        ]),
    ["ZADD", MODELS_KEY, now, flush.modelHash],
    ["ZREMRANGEBYSCORE", MODELS_KEY, "-inf", stale],
    ["ZREMRANGEBYSCORE", keys.series, "-inf", stale],
  ];
}

/** The commands that say what a writer expects to run next, to be sent with a flush. */
export function queuedCommands(
  modelHash: string,
  writer: string,
  now: number,
  queued: readonly QueuedTokens[],
): (readonly [string, ...(string | number | Buffer)[]])[] {
  const key = modelKeys(modelHash).queued(bucketOf(now));
  const tokens = queued.map(
    ({ task, phase, tokens }) => [seriesName(task, phase), tokens] as const,
  );
  return [
    ["HSET", key, writer, JSON.stringify(Object.fromEntries(tokens))],
    ["EXPIRE", key, RETENTION_SECONDS],
  ];
}

/** What all writers expect to run next: fields and values of a hash in turns, of which later ones replace earlier ones. */
export function decodeQueued(fields: readonly Buffer[]): QueuedTokens[] {
  const byWriter = new Map<string, Buffer>();
  for (let i = 0; i + 1 < fields.length; i += 2) byWriter.set(String(fields[i]), fields[i + 1]);
  const sums = new Map<string, number>();
  for (const json of byWriter.values()) {
    for (const [name, tokens] of Object.entries(
      JSON.parse(String(json)) as Record<string, number>,
    )) {
      sums.set(name, (sums.get(name) ?? 0) + tokens);
    }
  }
  return [...sums].flatMap(([name, tokens]) => {
    const series = parseSeriesName(name);
    return series === undefined ? [] : [{ ...series, tokens }];
  });
}
