/** What the counts say: sums, load with decay, shares and imbalance. Pure. */

import type { RoutingShape, CountedPhase } from "./routed-step.ts";
import { BUCKET_SECONDS, seriesName, type ModelShape, type SeriesSum } from "./encoding.ts";
import type { PairKind, PairLists } from "./pairs.ts";

/** Counts of ten seconds. */
export interface Bucket {
  /** Unix time, seconds. */
  readonly startedAt: number;
  readonly series: readonly SeriesSum[];
}

/** Counts of a window. */
export interface SeriesTotals extends ModelShape {
  readonly series: readonly SeriesSum[];
}

/** Counts of a window, pairs of experts too. */
export interface StatisticsSum extends SeriesTotals {
  readonly pairs: PairTables;
}

/** Lists of both kinds. */
export type PairTables = Readonly<Record<PairKind, PairLists>>;

/** Which series count; what is absent does not restrict. */
export interface SeriesFilter {
  readonly task?: string;
  readonly phase?: CountedPhase;
}

/** Series that a filter lets through. */
export function selectSeries(series: readonly SeriesSum[], filter: SeriesFilter): SeriesSum[] {
  return series.filter(
    ({ task, phase }) =>
      (filter.task === undefined || task === filter.task) &&
      (filter.phase === undefined || phase === filter.phase),
  );
}

/** Buckets added up, one series per task and phase. */
export function sumBuckets(shape: ModelShape, buckets: readonly Bucket[]): SeriesTotals {
  const sums = new Map<string, SeriesSum[]>();
  for (const one of buckets.flatMap((bucket) => bucket.series)) {
    const key = seriesName(one.task, one.phase);
    sums.set(key, [...(sums.get(key) ?? []), one]);
  }
  return {
    ...shape,
    series: [...sums.values()].map((parts) => ({
      task: parts[0].task,
      phase: parts[0].phase,
      tokens: parts.reduce((total, part) => total + part.tokens, 0),
      expertTokens: addUp(parts.map((part) => part.expertTokens)),
      weightSums: addUp(parts.map((part) => part.weightSums)),
    })),
  };
}

/** Tokens per MoE layer and expert, all given series together [numMoeLayers, numExperts]. */
export function totalLoad(shape: RoutingShape, series: readonly SeriesSum[]): Float64Array {
  return addUp(
    series.map((one) => one.expertTokens),
    shape.layers.length * shape.numExperts,
  );
}

/**
 * Load in which a token counts half after every `halfLifeSeconds`, as of `now` (Unix seconds); the age of a bucket's
 * tokens is that of its middle, at least 0 [numMoeLayers, numExperts].
 */
export function decayedLoad(
  shape: RoutingShape,
  buckets: readonly Bucket[],
  halfLifeSeconds: number,
  now: number,
  filter: SeriesFilter = {},
): Float64Array {
  const load = new Float64Array(shape.layers.length * shape.numExperts);
  for (const { startedAt, series } of buckets) {
    const age = Math.max(0, now - (startedAt + BUCKET_SECONDS / 2));
    const factor = 2 ** (-age / halfLifeSeconds);
    for (const { expertTokens } of selectSeries(series, filter)) {
      for (let i = 0; i < load.length; i++) load[i] += factor * expertTokens[i];
    }
  }
  return load;
}

/** (max − mean) / mean of the loads; 0 where there is none. */
export function imbalance(loads: ArrayLike<number>): number {
  let max = 0;
  let sum = 0;
  for (let i = 0; i < loads.length; i++) {
    max = Math.max(max, loads[i]);
    sum += loads[i];
  }
  return sum === 0 ? 0 : (max * loads.length) / sum - 1;
}

/** Mean over the layers that have load of their imbalance [numMoeLayers, numExperts]; 0 where none has. */
export function meanImbalance(load: Float64Array, numExperts: number): number {
  let sum = 0;
  let layers = 0;
  for (let i = 0; i < load.length; i += numExperts) {
    const ofLayer = load.subarray(i, i + numExperts);
    if (ofLayer.every((tokens) => tokens === 0)) continue;
    sum += imbalance(ofLayer);
    layers++;
  }
  return layers === 0 ? 0 : sum / layers;
}

function addUp(arrays: readonly Float64Array[], length = arrays[0]?.length ?? 0): Float64Array {
  const total = new Float64Array(length);
  for (const array of arrays) for (let i = 0; i < length; i++) total[i] += array[i];
  return total;
}
