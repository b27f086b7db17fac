/** What counters gained since it was last taken, in portions of a bounded size. */

import type { RoutingCounters, SeriesCounts } from "./counters.ts";
import {
  coactivationRetention,
  encodeGrowth,
  modelKeys,
  RETENTION_SECONDS,
  seriesName,
  type FlushPart,
} from "./encoding.ts";

/** Cells of one portion, about: the series or stretch that reaches it is the last. 192 KiB, and some 15 ms of Redis' time. */
const MAX_CELLS_PER_FLUSH = 32_768;

/** Cells of the co-activation that are taken together. */
const STRETCH_CELLS = 8_192;

/** One portion of growth. */
export interface Growth {
  readonly series: readonly string[];
  readonly parts: readonly FlushPart[];
}

/**
 * Keeps a copy of the counters as they were taken. What a portion has no room for is in a later one: portions take the
 * series and stretches of the co-activation in turn.
 */
export class GrowthLedger {
  readonly #counters: RoutingCounters;
  readonly #takenSeries = new Map<SeriesCounts, Float64Array>();
  readonly #takenCoactivation: Float64Array;
  /** The series or stretch that the next portion begins with. */
  #next = 0;

  constructor(counters: RoutingCounters) {
    this.#counters = counters;
    this.#takenCoactivation = new Float64Array(counters.coactivation.length);
  }

  /** Takes the next portion, as additions to the keys of `bucket`; undefined where nothing grew. */
  take(modelHash: string, bucket: number, maxCells = MAX_CELLS_PER_FLUSH): Growth | undefined {
    const { series: allSeries, coactivation, shape } = this.#counters;
    const keys = modelKeys(modelHash);
    const units = allSeries.length + Math.ceil(coactivation.length / STRETCH_CELLS);
    const series: string[] = [];
    const parts: FlushPart[] = [];
    const stretches: Buffer[] = [];
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
          key: keys.bucket(bucket, name),
          runs: grown.bytes,
          expireSeconds: RETENTION_SECONDS,
        });
      } else {
        const grown = this.#takeStretch((index - allSeries.length) * STRETCH_CELLS);
        cells += grown.cells;
        if (grown.cells > 0) stretches.push(grown.bytes);
      }
    }
    if (stretches.length > 0) {
      parts.push({
        key: keys.coactivation(bucket),
        runs: Buffer.concat(stretches),
        expireSeconds: coactivationRetention(shape),
      });
    }
    return parts.length === 0 ? undefined : { series, parts };
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

  #takeStretch(from: number) {
    const { coactivation } = this.#counters;
    const to = Math.min(from + STRETCH_CELLS, coactivation.length);
    const grown = encodeGrowth(coactivation, this.#takenCoactivation, from, to);
    if (grown.cells > 0) this.#takenCoactivation.set(coactivation.subarray(from, to), from);
    return grown;
  }
}
