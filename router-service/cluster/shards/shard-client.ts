/** Keeps one shard connected: hello, placements, dispatches; and again, with a growing pause, whenever the stream ends. */

import { errorMessage } from "../../../core/error-message.ts";
import type { Logger } from "../../../core/platform/log.ts";
import type { ShardPlacement } from "../../../proto/gen/switchyard/v1/cluster.ts";
import type {
  RouterHello,
  ShardHello,
  ShardStatus,
} from "../../../proto/gen/switchyard/v1/expert.ts";
import { PlacementRefusedError, ShardLostError } from "../errors.ts";
import type { DispatchHeader, PackedDispatch } from "../../../core/wire.ts";
import { type DispatchHandle, ShardStream } from "./shard-stream.ts";

/** A shard that accepts a connection says hello within this time. */
const HELLO_TIMEOUT_MS = 5_000;
/** A placement is loaded within this time. */
const PLACEMENT_TIMEOUT_MS = 30 * 60_000;
/** Pause before the first new attempt, and the longest. */
const FIRST_PAUSE_MS = 50;
const LONGEST_PAUSE_MS = 1_000;

/** Pause before attempt number `attempt` (from 0), with up to half of it by chance. */
export function reconnectPauseMs(attempt: number, random: number): number {
  const full = Math.min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** Math.min(attempt, 16));
  return full / 2 + (full / 2) * random;
}

/** Where a shard stands; `epochs`: those of which it holds all that it was told to. */
export type ShardState =
  | { readonly kind: "away"; readonly reason: string }
  | {
      readonly kind: "connected";
      readonly stream: ShardStream;
      readonly epochs: ReadonlySet<number>;
    };

/** What a client needs. */
export interface ShardClientOptions {
  readonly address: string;
  readonly hello: RouterHello;
  readonly logger: Logger;
  /** Judges the shard's hello; gives what to place on it first, in order. Throws to refuse the shard. */
  readonly onHello: (hello: ShardHello) => readonly ShardPlacement[];
  readonly onStatus: (status: ShardStatus) => void;
  /** The shard connected, holds one more placement, or is away for another reason. */
  readonly onChange: () => void;
}

/** A shard, connected or not. */
export class ShardClient {
  readonly #options: ShardClientOptions;
  readonly #stop = new AbortController();
  readonly #loop: Promise<void>;
  #state: ShardState = { kind: "away", reason: "not connected yet" };
  #stream: ShardStream | undefined;
  #epochs = new Set<number>();
  /** On the present stream, by epoch; of epochs that are not released. */
  #placing = new Map<number, Promise<void>>();
  #loggedReason: string | undefined;

  constructor(options: ShardClientOptions) {
    this.#options = options;
    this.#loop = this.#keepConnected();
  }

  get address(): string {
    return this.#options.address;
  }

  get state(): ShardState {
    return this.#state;
  }

  /**
   * Has the shard hold a placement, and settles when it does; one that was sent on this stream is not sent again.
   * Rejects with PlacementRefusedError where the shard refuses it, with ShardLostError where it is away or lost meanwhile.
   */
  place(placement: ShardPlacement): Promise<void> {
    const state = this.#state;
    if (state.kind === "away") {
      return Promise.reject(new ShardLostError(`shard ${this.address}`, state.reason));
    }
    const known = this.#placing.get(placement.epoch);
    if (known !== undefined) return known;
    const placed = this.#place(state.stream, placement);
    this.#placing.set(placement.epoch, placed);
    return placed;
  }

  /** Sends rows; see ShardStream.dispatch. */
  dispatch(header: Omit<DispatchHeader, "dispatchId">, payload: PackedDispatch): DispatchHandle {
    if (this.#state.kind === "connected") return this.#state.stream.dispatch(header, payload);
    const lost = new ShardLostError(`shard ${this.address}`, this.#state.reason);
    return { answer: Promise.reject(lost), bytesOut: 0, cancel: () => {} };
  }

  /** Has the shard hold its placement of an epoch anew: it says that it does not. */
  placeAgain(placement: ShardPlacement): void {
    const { epoch } = placement;
    // Several dispatches may say so at once: one that is on its way already is not sent twice.
    if (!this.#epochs.delete(epoch) && this.#placing.has(epoch)) return;
    this.#placing.delete(epoch);
    this.place(placement).catch(() => {});
    this.#options.onChange();
  }

  /** Tells the shard that nothing is dispatched to an epoch below this one any more. */
  release(oldestLiveEpoch: number): void {
    if (this.#state.kind === "away") return;
    for (const held of [this.#epochs, this.#placing]) {
      for (const epoch of held.keys()) if (epoch < oldestLiveEpoch) held.delete(epoch);
    }
    this.#state.stream.release(oldestLiveEpoch);
  }

  /** Tells the shard that a placement is given up, and the one of `oldestLiveEpoch` stays. */
  abandon(epoch: number, oldestLiveEpoch: number): void {
    this.#epochs.delete(epoch);
    const sent = this.#placing.delete(epoch);
    // One that was not told of the live epoch yet holds nothing that it could stay with.
    if (!sent || this.#state.kind === "away" || !this.#epochs.has(oldestLiveEpoch)) return;
    this.#state.stream.release(oldestLiveEpoch, [epoch]);
  }

  /** Ends the stream and stops reconnecting. */
  async close(reason = "the router is stopping"): Promise<void> {
    this.#stop.abort();
    this.#stream?.end(reason);
    await this.#loop;
  }

  async #place(stream: ShardStream, placement: ShardPlacement): Promise<void> {
    const { address, logger, onChange } = this.#options;
    try {
      const ack = await stream.place(placement, PLACEMENT_TIMEOUT_MS);
      logger.info({ shard: address, ...ack }, "placement resident on shard");
    } catch (error) {
      if (this.#stream === stream) this.#placing.delete(placement.epoch);
      if (error instanceof PlacementRefusedError) {
        logger.warn({ shard: address, reason: error.message }, "placement refused by shard");
      } else {
        stream.end(errorMessage(error));
      }
      throw error;
    }
    // Another stream by now, or given up meanwhile.
    if (this.#stream !== stream || !this.#placing.has(placement.epoch)) return;
    this.#epochs.add(placement.epoch);
    onChange();
  }

  async #keepConnected(): Promise<void> {
    const { address, logger } = this.#options;
    let attempt = 0;
    while (!this.#stop.signal.aborted) {
      const wasConnected = await this.#connectOnce();
      if (this.#stop.signal.aborted) return;
      if (wasConnected) attempt = 0;
      const pauseMs = reconnectPauseMs(attempt++, Math.random());
      logger.debug({ shard: address, attempt, pauseMs }, "connecting again");
      await pause(pauseMs, this.#stop.signal);
    }
  }

  /** One stream from its begin to its end; whether it held a placement. */
  async #connectOnce(): Promise<boolean> {
    const { address, hello, onHello, onStatus, onChange, logger } = this.#options;
    const stream = new ShardStream(address, `shard ${address}`, onStatus);
    this.#stream = stream;
    this.#epochs = new Set();
    this.#placing = new Map();
    try {
      const theirs = await stream.hello(hello, HELLO_TIMEOUT_MS);
      const { rank, adapter, conformanceTolerance: tolerance } = theirs;
      logger.info({ shard: address, rank, adapter, tolerance }, "shard says hello");
      const placements = onHello(theirs);
      this.#state = { kind: "connected", stream, epochs: this.#epochs };
      for (const placement of placements) this.place(placement).catch(() => {});
      onChange();
    } catch (error) {
      stream.end(errorMessage(error));
    }
    const reason = await stream.ended;
    const held = this.#epochs.size > 0;
    this.#state = { kind: "away", reason };
    // Once per reason: a shard that stays away would fill the log.
    if (reason !== this.#loggedReason && !this.#stop.signal.aborted) {
      logger.warn(
        { shard: address, reason },
        held ? "shard lost" : "shard not ready; trying again",
      );
    }
    this.#loggedReason = held ? undefined : reason;
    onChange();
    return held;
  }
}

function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(done, ms);
    function done() {
      clearTimeout(timer);
      signal.removeEventListener("abort", done);
      resolve();
    }
    signal.addEventListener("abort", done);
  });
}
