/** What counters gained since it was last taken, in portions of a bounded size. */

import type { RoutingCounters, SeriesCounts } from "./counters.ts";
import {
  encodeGrowth,
  modelKeys,
  pairRetention,
  RETENTION_SECONDS,
  seriesName,
  seriesRetention,
  type FlushPart,
} from "./encoding.ts";
import { encodeLists, listField } from "./pair-encoding.ts";

/** Cells of one portion, about: the series or stretch that reaches it is the last. 192 KiB, and some 15 ms of Redis' time. */
const MAX_CELLS_PER_FLUSH = 32_768;

/** Cells of the pairs that are taken together. */
const STRETCH_CELLS = 8_192;

/** Lists of pairs, one layer each, of one portion: 256 KiB at 256 experts. */
const MAX_LISTS_PER_FLUSH = 8;

/** One portion of growth. */
export interface Growth {
  readonly series: readonly string[];
  readonly parts: readonly FlushPart[];
  readonly lists: readonly (readonly [field: string, bytes: Buffer])[];
}

/** Part of a string that is not a series. */
interface Stretch {
  readonly key: (bucket: number) => string;
  readonly expireSeconds: number;
  readonly values: Float64Array;
  readonly taken: Float64Array;
  readonly from: number;
  readonly to: number;
}

/**
 * Keeps a copy of the counters as they were taken. What a portion has no room for is in a later one: portions take the
 * series and stretches of the pairs in turn.
 */
export class GrowthLedger {
  readonly #counters: RoutingCounters;
  readonly #keys: ReturnType<typeof modelKeys>;
  readonly #takenSeries = new Map<SeriesCounts, Float64Array>();
  readonly #stretches: readonly Stretch[];
  /** The series or stretch that the next portion begins with. */
  #next = 0;

  constructor(counters: RoutingCounters, modelHash: string) {
    const keys = modelKeys(modelHash);
    this.#counters = counters;
    this.#keys = keys;
    const everyPair = [counters.together, counters.next].filter(({ lists }) => lists === undefined);
    const expireSeconds = pairRetention(counters.shape);
    this.#stretches = [
      ...stretchesOf(keys.steps, RETENTION_SECONDS, counters.steps),
      ...everyPair.flatMap(({ kind, cells }) =>
        stretchesOf((bucket) => keys.allPairs(bucket, kind), expireSeconds, cells),
      ),
    ];
  }

  /** Takes the next portion, as additions to the keys of `bucket`; undefined where nothing grew. */
  take(bucket: number, maxCells = MAX_CELLS_PER_FLUSH): Growth | undefined {
    const { series: allSeries, shape } = this.#counters;
    const units = allSeries.length + this.#stretches.length;
    const series: string[] = [];
    const parts: FlushPart[] = [];
    const stretches = new Map<
      string,
      { readonly expireSeconds: number; readonly runs: Buffer[] }
    >();
    let cells = 0;
    for (let visited = 0; visited < units && cells < maxCells; visited++) {
      const index = this.#next % units;
      this.#next = index + 1;
      const one = allSeries[index];
      if (one !== undefined) {
        const grown = this.#takeSeries(one);
        cells += grown.cells;
        if (grown.cells === 0) continue;
        const name = seriesName(one.task, one.phase);
        series.push(name);
        parts.push({
          key: this.#keys.bucket(bucket, name),
          runs: grown.bytes,
          expireSeconds: seriesRetention(shape, allSeries.length),
        });
      } else {
        const { key, expireSeconds, ...stretch } = this.#stretches[index - allSeries.length];
        const grown = takeStretch(stretch);
        cells += grown.cells;
        if (grown.cells === 0) continue;
        const name = key(bucket);
        const runs = stretches.get(name)?.runs ?? [];
        runs.push(grown.bytes);
        stretches.set(name, { expireSeconds, runs });
      }
    }
    for (const [key, { expireSeconds, runs }] of stretches) {
      parts.push({ key, runs: Buffer.concat(runs), expireSeconds });
    }
    const lists = this.#takeLists();
    return parts.length + lists.length === 0 ? undefined : { series, parts, lists };
  }

  #takeSeries(series: SeriesCounts) {
    let taken = this.#takenSeries.get(series);
    if (taken === undefined) {
      taken = new Float64Array(series.cells.length);
      this.#takenSeries.set(series, taken);
    }
    const grown = encodeGrowth(series.cells, taken, 0, taken.length);
    if (grown.cells > 0) taken.set(series.cells);
    return grown;
  }

  #takeLists(): (readonly [string, Buffer])[] {
    const { together, next, shape } = this.#counters;
    const taken: (readonly [string, Buffer])[] = [];
    for (const { kind, lists, changed } of [together, next]) {
      if (lists === undefined) continue;
      for (const layer of changed) {
        if (taken.length === MAX_LISTS_PER_FLUSH) return taken;
        changed.delete(layer);
        taken.push([listField(kind, layer), encodeLists(lists, layer, shape.numExperts)]);
      }
    }
    return taken;
  }
}

function stretchesOf(
  key: (bucket: number) => string,
  expireSeconds: number,
  values: Float64Array,
): Stretch[] {
  const taken = new Float64Array(values.length);
  return Array.from({ length: Math.ceil(values.length / STRETCH_CELLS) }, (_, i) => {
    const from = i * STRETCH_CELLS;
    const to = Math.min(from + STRETCH_CELLS, values.length);
    return { key, expireSeconds, values, taken, from, to };
  });
}

function takeStretch({ values, taken, from, to }: Omit<Stretch, "key" | "expireSeconds">) {
  const grown = encodeGrowth(values, taken, from, to);
  if (grown.cells > 0) taken.set(values.subarray(from, to), from);
  return grown;
}
