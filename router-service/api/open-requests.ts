/** The requests that the doors are answering, so that a stop can wait for them and then end them. */

import { UnavailableError } from "../engine/errors.ts";

/** One request while it is answered. */
export interface OpenRequest {
  /** Aborts the engine's part: the client is gone, a sibling failed, or the service stops. */
  readonly abort: AbortController;
  /** Tells that the answer is complete. */
  done(): void;
}

/** Counts open requests; after `stop` new ones are refused. */
export class OpenRequests {
  readonly #open = new Set<AbortController>();
  #stopping = false;
  #whenEmpty: (() => void) | undefined;

  /** Why new requests are refused; undefined before `stop`. */
  get refusal(): string | undefined {
    return this.#stopping ? "the service is stopping" : undefined;
  }

  start(): OpenRequest {
    const abort = new AbortController();
    this.#open.add(abort);
    return {
      abort,
      done: () => {
        this.#open.delete(abort);
        if (this.#open.size === 0) this.#whenEmpty?.();
      },
    };
  }

  /** Refuses new requests, waits for the open ones for at most `deadlineMs`, then ends those that are left. */
  async stop(deadlineMs: number): Promise<void> {
    this.#stopping = true;
    if (await this.#emptyWithin(deadlineMs)) return;
    const reason = new UnavailableError("the service is stopping");
    for (const abort of this.#open) abort.abort(reason);
    // An aborted request still writes its error event; a client that does not read can not hold the stop up.
    await this.#emptyWithin(1000);
  }

  async #emptyWithin(ms: number): Promise<boolean> {
    if (this.#open.size === 0) return true;
    const empty = Promise.withResolvers<boolean>();
    const timer = setTimeout(() => empty.resolve(false), ms);
    this.#whenEmpty = () => empty.resolve(true);
    try {
      return await empty.promise;
    } finally {
      clearTimeout(timer);
      this.#whenEmpty = undefined;
    }
  }
}
