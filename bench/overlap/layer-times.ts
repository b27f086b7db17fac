/** Where a layer's time goes, and what two micro-batches can save of it; pure. */

/** What a layer of a step takes with one micro-batch, milliseconds. */
export interface LayerTimes {
  /** The router's own. */
  readonly router: number;
  /** The slower shard's, with what its process and the router's spend to pass rows on. */
  readonly shards: number;
  /** There and back. */
  readonly wire: number;
}

/** A time during which a dispatch was under way, milliseconds. */
export interface Interval {
  readonly from: number;
  readonly to: number;
}

/** Milliseconds between two moments during which at least one interval lasted. */
export function coveredMs(intervals: readonly Interval[], from: number, to: number): number {
  let covered = 0;
  let reached = from;
  for (const one of intervals.toSorted((a, b) => a.from - b.from)) {
    const end = Math.min(one.to, to);
    if (end <= reached) continue;
    covered += end - Math.max(one.from, reached);
    reached = end;
  }
  return covered;
}

/**
 * How many times as fast a layer is where its batch is cut in two equal halves, each of which takes half of the time on
 * router and shards: the slowest of router, shards and one half's own way decides.
 */
export function overlapBound({ router, shards, wire }: LayerTimes): number {
  return (router + shards + wire) / Math.max(router, shards, (router + shards) / 2 + wire);
}
