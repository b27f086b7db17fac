/** Shards that hold something and are gone: for how long. */

/** Remembers since when shards are away. Times are milliseconds of one clock. */
export class AwayShards {
  readonly #since = new Map<number, number>();

  /** Takes note of the ranks that are away now. */
  note(ranks: readonly number[], now: number): void {
    for (const rank of this.#since.keys()) if (!ranks.includes(rank)) this.#since.delete(rank);
    for (const rank of ranks) if (!this.#since.has(rank)) this.#since.set(rank, now);
  }

  /** Milliseconds until the last of them has been away for `graceMs`; 0 where all have, or none is away. */
  graceLeft(graceMs: number, now: number): number {
    return Math.max(0, ...this.#since.values().map((since) => since + graceMs - now));
  }
}
