/** Fills a shard's empty slots: with all cores before anything is served, else in portions that give way to runs. */

import type { ExpertSizes } from "../core/expert-device.ts";
import { PackPool } from "../core/packing/pack-pool.ts";
import { packThreads } from "../core/packing/pack-threads.ts";
import type { Progress } from "../core/platform/progress.ts";
import type { PackedExpert } from "../core/expert-format.ts";
import type { DeviceSlots, EmptySlot } from "../core/residency/device-slots.ts";
import { onTheWay, PORTION_BYTES, writePortions } from "../core/write-portions.ts";
import type { ExpertSources } from "./expert-sources.ts";
import type { CheckedPlacement } from "./placement-check.ts";

/** Experts that are fetched ahead of those that are packed. */
const READ_AHEAD = 2;

/** Experts under way at most, beside those ahead; packing has no more threads. */
const MAX_LANES = 16;

/** What loading needs. */
export interface LoaderOptions {
  readonly sizes: ExpertSizes;
  readonly sources: ExpertSources;
  /** Settles between two runs: at once where there are none. */
  readonly turn: () => Promise<void>;
  /** Where there were runs since `startedAt`, milliseconds of `performance.now`, waits as long again as the work took. */
  readonly giveWay: (startedAt: number, workMs: number, signal: AbortSignal) => Promise<void>;
  /** Shows how far a load of so many experts is, until it is finished or stopped. */
  readonly startProgress?: (total: number) => Progress;
}

/** How a load goes about it. */
export interface LoadTerms {
  /** Whether something is served meanwhile. */
  readonly gentle: () => boolean;
  readonly signal: AbortSignal;
}

/**
 * Fills the empty slots. Rejects with the first thing that goes wrong, or the signal's reason, when nothing is under way
 * any more.
 */
export type LoadPlacement = (
  slots: DeviceSlots,
  placement: CheckedPlacement,
  terms: LoadTerms,
) => Promise<void>;

/** Makes what loads. */
export function createLoader(options: LoaderOptions): LoadPlacement {
  return async (slots, placement, terms) => {
    const load = new Load(options, slots, placement, terms);
    await load.run();
  };
}

class Load {
  readonly #options: LoaderOptions;
  readonly #slots: DeviceSlots;
  readonly #terms: LoadTerms;
  readonly #placement: CheckedPlacement;
  readonly #waiting: EmptySlot[];
  readonly #total: number;
  /** As packThreads says. */
  readonly #numWorkers: number | undefined;
  readonly #progress: Progress | undefined;
  #pool: PackPool | undefined;
  #loaded = 0;
  readonly #onPortion: (bytes: number) => Promise<void> | undefined;
  #stopped = false;

  constructor(
    options: LoaderOptions,
    slots: DeviceSlots,
    placement: CheckedPlacement,
    terms: LoadTerms,
  ) {
    this.#options = options;
    this.#slots = slots;
    this.#terms = terms;
    this.#placement = placement;
    this.#waiting = slots.empty();
    this.#total = this.#waiting.length;
    this.#numWorkers = packThreads(options.sizes, this.#total, terms.gentle());
    this.#onPortion = onTheWay(slots.device);
    this.#progress = this.#total > 0 ? options.startProgress?.(this.#total) : undefined;
  }

  async run(): Promise<void> {
    const numWorkers = this.#numWorkers ?? MAX_LANES;
    const lanes = this.#terms.gentle() ? 1 + Math.min(1, numWorkers) : numWorkers + READ_AHEAD;
    try {
      const ended = await Promise.allSettled(
        Array.from({ length: Math.min(lanes, this.#total) }, () => this.#lane()),
      );
      const failed = ended.find(({ status }) => status === "rejected");
      if (failed?.status === "rejected") throw failed.reason;
      if (this.#total > 0) await this.#slots.device.settled();
      this.#progress?.finish();
    } catch (error) {
      this.#progress?.stop();
      throw error;
    } finally {
      this.#options.sources.rest();
      await this.#pool?.close();
    }
  }

  async #lane(): Promise<void> {
    const { gentle, signal } = this.#terms;
    try {
      for (;;) {
        signal.throwIfAborted();
        const next = this.#stopped ? undefined : this.#waiting.shift();
        if (next === undefined) return;
        const startedAt = performance.now();
        const workMs = await this.#loadOne(next);
        if (gentle()) await this.#options.giveWay(startedAt, workMs, signal);
      }
    } catch (error) {
      this.#stopped = true;
      throw signal.aborted ? signal.reason : error;
    }
  }

  /** Loads an expert; milliseconds of that without waits for runs. */
  async #loadOne(slot: EmptySlot): Promise<number> {
    const { layer, expert, format } = slot;
    const { sources, turn } = this.#options;
    const peers = this.#placement.peers.flatMap(({ address, layers }) =>
      layers.some((of) => of.layer === layer && of.expertIds.includes(expert)) ? [address] : [],
    );
    const startedAt = performance.now();
    const packed: PackedExpert = await sources.get(
      { layer, expert, format },
      peers,
      this.#terms.signal,
      () => this.#packers(),
    );
    const { device } = this.#slots;
    const { gentle, signal } = this.#terms;
    const waitedMs = await writePortions(
      device.loadParts(layer, slot.slot, packed, PORTION_BYTES),
      { gentle, turn },
      () => this.#stopped || signal.aborted,
      this.#onPortion,
    );
    if (waitedMs === undefined) return 0;
    this.#slots.filled(slot);
    this.#progress?.update(++this.#loaded);
    return performance.now() - startedAt - waitedMs;
  }

  #packers(): PackPool | undefined {
    if (this.#numWorkers === 0) return undefined;
    this.#pool ??= new PackPool(this.#numWorkers);
    return this.#pool;
  }
}
