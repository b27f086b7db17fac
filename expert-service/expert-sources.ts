/** Where a shard's experts come from: host memory, else the checkpoint or a peer, whichever is faster; where one fails, the other. */

import { errorMessage } from "../core/error-message.ts";
import type { ExpertSizes, StoredExpert } from "../core/expert-device.ts";
import type { ExpertFormat } from "../core/expert-format.ts";
import type { PackPool } from "../core/packing/pack-pool.ts";
import type { Logger } from "../core/platform/log.ts";
import { expertBytes, packExpert, type PackedExpert } from "../core/weights.ts";
import type { HostCache } from "./host-cache.ts";
import type { PeerExperts } from "./peer-experts.ts";
import { failed, measured, orderSources, type SourceRecord } from "./source-choice.ts";

/** Experts that are fetched from one peer at a time. */
const FETCHES_PER_PEER = 2;

/** The checkpoint among the sources; no address is like it. */
const CHECKPOINT = "checkpoint";

/** One expert of the model in a format. */
export interface WantedExpert {
  readonly layer: number;
  readonly expert: number;
  readonly format: ExpertFormat;
}

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
   * An expert, packed.
   * @param holders addresses of shards that have it
   * @param packers threads that pack what the checkpoint has; undefined: this one does
   * Rejects with what the checkpoint's way fails with, when no other is left, or with the signal's reason.
   */
  async get(
    wanted: WantedExpert,
    holders: readonly string[],
    signal: AbortSignal,
    packers: () => PackPool | undefined,
  ): Promise<PackedExpert> {
    const { cache, sizes, now, onExpert, ownAddress, logger } = this.#options;
    const bytes = expertBytes(sizes, wanted.format);
    const kept = cache.take(wanted);
    if (kept !== undefined) {
      onExpert?.("host", bytes, 0);
      return kept;
    }
    const free = holders.filter(
      (one) => one !== ownAddress() && (this.#fetching.get(one) ?? 0) < FETCHES_PER_PEER,
    );
    const recordOf = (source: string) => this.#records.get(source) ?? {};
    let failure: unknown;
    for (const source of orderSources([...free, CHECKPOINT], recordOf, now())) {
      signal.throwIfAborted();
      const startedAt = now();
      try {
        const packed = await (source === CHECKPOINT
          ? this.#fromCheckpoint(wanted, packers())
          : this.#fromPeer(source, wanted, signal));
        const seconds = (now() - startedAt) / 1000;
        this.#records.set(source, measured(recordOf(source), seconds, bytes, now()));
        onExpert?.(source === CHECKPOINT ? "checkpoint" : "peer", bytes, seconds);
        return packed;
      } catch (error) {
        signal.throwIfAborted();
        this.#records.set(source, failed(recordOf(source), now()));
        const { layer, expert } = wanted;
        logger.warn({ layer, expert, source, reason: errorMessage(error) }, "expert not loaded");
        if (failure === undefined || source === CHECKPOINT) failure = error;
      }
    }
    throw failure;
  }

  /** Nothing is to be loaded for now: connections to peers may go. */
  rest(): void {
    this.#options.peers.rest();
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
