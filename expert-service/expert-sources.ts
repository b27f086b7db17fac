/** Where a shard's experts come from: host memory, else the checkpoint or a peer, whichever is faster; where one fails, the other. */

import { setTimeout as pause } from "node:timers/promises";

import { errorMessage } from "../core/error-message.ts";
import type { ExpertSizes, StoredExpert } from "../core/expert-device.ts";
import type { PackPool } from "../core/packing/pack-pool.ts";
import type { Logger } from "../core/platform/log.ts";
import { expertBytes, packExpert } from "../core/weights.ts";
import type { PackedExpert } from "../core/expert-format.ts";
import type { HostCache } from "./host-cache.ts";
import { PeerError, type PeerExperts, type WantedExpert } from "./peer-experts.ts";
import {
  failed,
  failedLately,
  measured,
  orderSources,
  type SourceRecord,
} from "./source-choice.ts";

/** Experts that are fetched from one peer at a time. */
const FETCHES_PER_PEER = 2;

/** Pauses between two looks whether a holder is free, the first and the longest, milliseconds. */
const FIRST_PAUSE_MS = 10;
const LONGEST_PAUSE_MS = 320;

/** Longest wait for holders that are busy, milliseconds; routers wait for a placement twice as long. */
const WAIT_MS = 300_000;

/** The checkpoint among the sources; no address is like it. */
const CHECKPOINT = "checkpoint";

/** What sources need. */
export interface ExpertSourcesOptions {
  readonly sizes: ExpertSizes;
  readonly readExpert: (layer: number, expert: number) => Promise<StoredExpert>;
  readonly cache: HostCache;
  readonly peers: Pick<PeerExperts, "fetch" | "rest">;
  /** Where this shard itself is reached; undefined before it is known. */
  readonly ownAddress: () => string | undefined;
  readonly logger: Logger;
  /** Milliseconds, monotonic. */
  readonly now: () => number;
  /** Longest wait for holders that are busy, milliseconds; WAIT_MS unless told otherwise. */
  readonly waitMs?: number;
  /** Called after each expert, with where it came from. */
  readonly onExpert?: (
    source: "checkpoint" | "peer" | "host",
    bytes: number,
    seconds: number,
  ) => void;
}

/** All sources of one shard, and how fast each was. */
export class ExpertSources {
  readonly #options: ExpertSourcesOptions;
  readonly #records = new Map<string, SourceRecord>();
  readonly #fetching = new Map<string, number>();

  constructor(options: ExpertSourcesOptions) {
    this.#options = options;
  }

  /**
   * An expert, packed. Where the checkpoint fails, it waits for its turn with holders that are busy.
   * @param holders addresses of shards that have it
   * @param packers threads that pack what the checkpoint has; undefined: this one does
   * Rejects with what the checkpoint's way fails with, when no other is left or none gave it in time, or with the
   * signal's reason.
   */
  async get(
    wanted: WantedExpert,
    holders: readonly string[],
    signal: AbortSignal,
    packers: () => PackPool | undefined,
  ): Promise<PackedExpert> {
    const { cache, now, onExpert, ownAddress, waitMs = WAIT_MS } = this.#options;
    const kept = cache.take(wanted);
    if (kept !== undefined) {
      onExpert?.("host", expertBytes(this.#options.sizes, kept.format), 0);
      return kept;
    }
    const left = new Set([...holders.filter((one) => one !== ownAddress()), CHECKPOINT]);
    const recordOf = (source: string) => this.#records.get(source) ?? {};
    const isFree = (source: string) => (this.#fetching.get(source) ?? 0) < FETCHES_PER_PEER;
    const startedAt = now();
    let failure: unknown;
    for (let round = 0; ; round++) {
      for (const source of orderSources([...left].filter(isFree), recordOf, now())) {
        signal.throwIfAborted();
        try {
          return await this.#from(source, wanted, signal, packers);
        } catch (error) {
          signal.throwIfAborted();
          if (!this.#failed(source, wanted, error)) continue;
          left.delete(source);
          if (failure === undefined || source === CHECKPOINT) failure = error;
        }
      }
      if (left.size === 0) throw failure;
      const waitedMs = Math.round(now() - startedAt);
      if (waitedMs >= waitMs) {
        const text = `${errorMessage(failure)}; ${[...left].join(", ")} did not give it within ${waitedMs} ms`;
        throw new PeerError(text, true, { cause: failure });
      }
      await pauseFor(Math.min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** round), signal);
    }
  }

  /** Nothing is to be loaded for now: connections to peers may go. */
  rest(): void {
    this.#options.peers.rest();
  }

  /** The expert from one source, which is measured by it. */
  async #from(
    source: string,
    wanted: WantedExpert,
    signal: AbortSignal,
    packers: () => PackPool | undefined,
  ): Promise<PackedExpert> {
    const { sizes, now, onExpert } = this.#options;
    const startedAt = now();
    const packed = await (source === CHECKPOINT
      ? orAborted(this.#fromCheckpoint(wanted, packers()), signal)
      : this.#fromPeer(source, wanted, signal));
    const seconds = (now() - startedAt) / 1000;
    const bytes = expertBytes(sizes, wanted.format);
    const record = this.#records.get(source) ?? {};
    this.#records.set(source, measured(record, seconds, bytes, now()));
    onExpert?.(source === CHECKPOINT ? "checkpoint" : "peer", bytes, seconds);
    return packed;
  }

  /** Remembers that a source failed; says so where it has not lately. Whether it may not give the expert later either. */
  #failed(source: string, { layer, expert }: WantedExpert, error: unknown): boolean {
    const { now, logger } = this.#options;
    const record = this.#records.get(source) ?? {};
    this.#records.set(source, failed(record, now()));
    if (error instanceof PeerError && error.busy) return false;
    if (!failedLately(record, now())) {
      logger.warn({ layer, expert, source, reason: errorMessage(error) }, "expert not loaded");
    }
    return true;
  }

  async #fromCheckpoint(
    { layer, expert, format }: WantedExpert,
    pool: PackPool | undefined,
  ): Promise<PackedExpert> {
    const { sizes, readExpert } = this.#options;
    const name = `layer ${layer} expert ${expert}`;
    const weights = await readExpert(layer, expert);
    if (pool === undefined) return packExpert(name, weights, sizes, format);
    return pool.pack({ name, weights, sizes, format });
  }

  async #fromPeer(
    address: string,
    wanted: WantedExpert,
    signal: AbortSignal,
  ): Promise<PackedExpert> {
    this.#fetching.set(address, (this.#fetching.get(address) ?? 0) + 1);
    try {
      return await this.#options.peers.fetch(address, wanted, signal);
    } finally {
      this.#fetching.set(address, (this.#fetching.get(address) ?? 1) - 1);
    }
  }
}

/** Rejects with the signal's reason. */
async function pauseFor(ms: number, signal: AbortSignal): Promise<void> {
  try {
    await pause(ms, undefined, { signal });
  } catch (error) {
    signal.throwIfAborted();
    throw error;
  }
}

/** Settles as the promise, or rejects with the signal's reason before it: a read of a disk that hangs ends no other way. */
async function orAborted<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  const aborted = Promise.withResolvers<never>();
  const onAbort = () => aborted.reject(signal.reason);
  signal.addEventListener("abort", onAbort);
  try {
    return await Promise.race([promise, aborted.promise]);
  } finally {
    signal.removeEventListener("abort", onAbort);
  }
}
