/** Shards that hold something and are gone: for how long, and whether they may still be back. */

/** Where nobody has room for a lost shard's experts, requests wait so long for it before they are refused, milliseconds. */
const PATIENCE_MS = 5_000;

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

  /**
   * One of them may still be started again at its place, so that nobody else needs room for its experts: for a while where
   * `left` shards are there, as long as it takes where none is.
   */
  mayReturn(now: number, left: number): boolean {
    if (left === 0) return true;
    return this.#since.values().some((since) => now - since < PATIENCE_MS);
  }
}
