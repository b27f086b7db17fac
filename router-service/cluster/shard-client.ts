/** Keeps one shard connected: hello, placement, ready; and again, with a growing pause, whenever the stream ends. */

import { errorMessage } from "../../core/error-message.ts";
import type { Logger } from "../../core/platform/log.ts";
import type { ShardPlacement } from "../../proto/gen/switchyard/v1/cluster.ts";
import type { RouterHello, ShardHello } from "../../proto/gen/switchyard/v1/expert.ts";
import { ShardLostError } from "./errors.ts";
import { ShardStream } from "./shard-stream.ts";

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

/** Where a shard stands. */
export type ShardState =
  | { readonly kind: "away"; readonly reason: string }
  | { readonly kind: "ready"; readonly stream: ShardStream };

/** What a client needs. */
export interface ShardClientOptions {
  readonly address: string;
  readonly hello: RouterHello;
  readonly logger: Logger;
  /** Judges the shard's hello and answers with its placement, once that is known. Rejects to refuse the shard. */
  readonly onHello: (hello: ShardHello) => Promise<ShardPlacement>;
  /** The shard holds its placement. */
  readonly onReady: () => void;
  /** A shard that was ready is gone. */
  readonly onLost: (reason: string) => void;
}

/** A shard, connected or not. */
export class ShardClient {
  readonly #options: ShardClientOptions;
  readonly #stop = new AbortController();
  readonly #loop: Promise<void>;
  #state: ShardState = { kind: "away", reason: "not connected yet" };
  #stream: ShardStream | undefined;
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

  /** Ends the stream and stops reconnecting. */
  async close(): Promise<void> {
    this.#stop.abort();
    this.#stream?.end("the router is stopping");
    await this.#loop;
  }

  async #keepConnected(): Promise<void> {
    const { address, logger } = this.#options;
    let attempt = 0;
    while (!this.#stop.signal.aborted) {
      const wasReady = await this.#connectOnce();
      if (this.#stop.signal.aborted) return;
      if (wasReady) attempt = 0;
      const pauseMs = reconnectPauseMs(attempt++, Math.random());
      logger.debug({ shard: address, attempt, pauseMs }, "connecting again");
      await pause(pauseMs, this.#stop.signal);
    }
  }

  /** One stream from its begin to its end; whether it became ready. */
  async #connectOnce(): Promise<boolean> {
    const { address, hello, onHello, onReady, onLost, logger } = this.#options;
    const stream = new ShardStream(address, `shard ${address}`);
    this.#stream = stream;
    const gone = stream.ended.then((reason) => {
      throw new ShardLostError(`shard ${address}`, reason);
    });
    gone.catch(() => {});
    let ready = false;
    try {
      const theirs = await stream.hello(hello, HELLO_TIMEOUT_MS);
      const { rank, adapter, conformanceTolerance: tolerance } = theirs;
      logger.info({ shard: address, rank, adapter, tolerance }, "shard says hello");
      this.#state = { kind: "away", reason: "its placement is being loaded" };
      const placement = await Promise.race([onHello(theirs), gone]);
      const ack = await stream.place(placement, PLACEMENT_TIMEOUT_MS);
      logger.info({ shard: address, rank, adapter, ...ack }, "shard ready");
      this.#state = { kind: "ready", stream };
      ready = true;
      this.#loggedReason = undefined;
      onReady();
    } catch (error) {
      stream.end(errorMessage(error));
    }
    const reason = await stream.ended;
    this.#state = { kind: "away", reason };
    // Once per reason: a shard that stays away would fill the log.
    if (reason !== this.#loggedReason && !this.#stop.signal.aborted) {
      logger.warn({ shard: address, reason }, ready ? "shard lost" : "shard not ready");
    }
    this.#loggedReason = reason;
    if (ready) onLost(reason);
    return ready;
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
