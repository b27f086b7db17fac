/** For how long a shard that answered wrongly gets no rows; pure. */

/** Answers that failed their checksum until the shard, or the way to it, counts as wrong. */
const MAX_CHECKSUMS = 3;
/** Within this time. */
const CHECKSUM_WINDOW_MS = 60_000;
const FIRST_MS = 2_000;
const LONGEST_MS = 5 * 60_000;
/** A shard that is wrong again within this many times its last quarantine is out for twice as long. */
const MEMORY = 10;

/** The record of one shard. Times are milliseconds of one clock. */
export class Quarantine {
  #until = -Infinity;
  #lengthMs = 0;
  #checksums: number[] = [];

  /** Until when it gets no rows; undefined where it does. */
  until(now: number): number | undefined {
    return now < this.#until ? this.#until : undefined;
  }

  /** Its sums were wrong: out, for twice as long as the last time. Gives the time in milliseconds. */
  wrong(now: number): number {
    const again = now < this.#until + MEMORY * this.#lengthMs;
    this.#lengthMs = again ? Math.min(LONGEST_MS, 2 * this.#lengthMs) : FIRST_MS;
    this.#until = now + this.#lengthMs;
    return this.#lengthMs;
  }

  /** A checksum did not match; out, as by `wrong`, where that is not the first time. Gives the time, undefined where it stays. */
  checksum(now: number): number | undefined {
    const recent = this.#checksums.filter((at) => now - at < CHECKSUM_WINDOW_MS);
    this.#checksums = [...recent, now];
    if (this.#checksums.length < MAX_CHECKSUMS) return undefined;
    this.#checksums = [];
    return this.wrong(now);
  }

  /** It was right after all. */
  forgive(): void {
    this.#until = -Infinity;
    this.#lengthMs = 0;
  }
}
