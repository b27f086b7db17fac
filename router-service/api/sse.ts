/** Server-sent events to one client, who may be slow, gone, or never read. */

import type { ServerResponse } from "node:http";

import { ClientGoneError } from "./api-errors.ts";

const HEADERS = {
  "content-type": "text/event-stream; charset=utf-8",
  "cache-control": "no-cache",
  "x-accel-buffering": "no",
};

/** Writes events; the status line goes out with the first one, so that an early failure still has its own status. */
export class EventStream {
  readonly #raw: ServerResponse;
  readonly #unreadMs: number;
  readonly #onOpen: () => Record<string, string>;
  #drained: Promise<void> | undefined;

  /** `onOpen` takes the response over from the framework and returns further headers. */
  constructor(raw: ServerResponse, unreadMs: number, onOpen: () => Record<string, string>) {
    this.#raw = raw;
    this.#unreadMs = unreadMs;
    this.#onOpen = onOpen;
  }

  /** Whether the status line is out. */
  get opened(): boolean {
    return this.#raw.headersSent;
  }

  /**
   * Sends one event as JSON, or a string as it is, and waits while the client's buffer is full.
   * Throws ClientGoneError when the client is gone or leaves the buffer full for too long.
   */
  async send(data: unknown): Promise<void> {
    if (this.#raw.destroyed || this.#raw.writableEnded) throw gone();
    if (!this.opened) this.#raw.writeHead(200, { ...this.#onOpen(), ...HEADERS });
    const text = typeof data === "string" ? data : JSON.stringify(data);
    if (this.#raw.write(`data: ${text}\n\n`)) return;
    this.#drained ??= this.#settled("drain").finally(() => (this.#drained = undefined));
    await this.#drained;
  }

  /** Ends the stream and waits until the client has it all; drops a client that does not read. */
  async end(): Promise<void> {
    if (this.#raw.destroyed) return;
    this.#raw.end();
    if (!this.#raw.writableFinished) await this.#settled("finish").catch(() => undefined);
  }

  async #settled(event: "drain" | "finish"): Promise<void> {
    const raw = this.#raw;
    const settled = Promise.withResolvers<void>();
    const onEvent = () => settled.resolve();
    const onClose = () => settled.reject(gone());
    const timer = setTimeout(() => {
      settled.reject(new ClientGoneError(`the client did not read for ${this.#unreadMs} ms`));
      raw.destroy();
    }, this.#unreadMs);
    raw.once(event, onEvent).once("close", onClose);
    try {
      await settled.promise;
    } finally {
      clearTimeout(timer);
      raw.off(event, onEvent).off("close", onClose);
    }
  }
}

function gone(): ClientGoneError {
  return new ClientGoneError("the client closed the connection");
}
