/** A shard's leaving: that it is to, what holds it up, and when it may be terminated. */

import { setTimeout as pause } from "node:timers/promises";

import type { Logger } from "../core/platform/log.ts";

/** What a leaving is judged by. */
export interface LeavingOptions {
  /** An epoch that a connected router uses, or waits for, places something here. */
  readonly isNeeded: () => boolean;
  /** Routers whose hello was taken. */
  readonly numRouters: () => number;
  /** Experts in device memory, and the bytes that they take. */
  readonly held: () => { readonly experts: number; readonly residentBytes: number };
  /** The shard is to leave now, or to stay after all. */
  readonly onChange: () => void;
  readonly logger: Pick<Logger, "info" | "warn">;
}

/** How the wait for a shard's release ended. */
export interface LeavingEnd {
  /** No connected router needs the shard any more. */
  readonly inOrder: boolean;
  readonly reason: string;
}

/** Time between two looks whether a shard that leaves may go, milliseconds. */
const POLL_MS = 50;

/** The leaving of one shard. */
export class Leaving {
  readonly #options: LeavingOptions;
  #draining = false;
  #saidSafe = false;
  #ended = false;
  /** Why no other shard has room, as a router said last. */
  #unplaceable = "";
  /** performance.now() when it leaves at the latest; undefined where nobody has set a time. */
  #endsAt: number | undefined;

  constructor(options: LeavingOptions) {
    this.#options = options;
  }

  get draining(): boolean {
    return this.#draining;
  }

  /** It is to leave, and nothing is placed on it any more. */
  get released(): boolean {
    return this.#draining && !this.#options.isNeeded();
  }

  /** Has the shard leave, or stay after all; a process that is to end does not stay. */
  set(wanted: boolean): void {
    if (this.#draining === wanted) return;
    const { logger, onChange } = this.#options;
    if (!wanted && this.#endsAt !== undefined) {
      logger.warn(this.#waits(), "drain is not cancelled: the process was told to end");
      return;
    }
    this.#draining = wanted;
    this.#unplaceable = "";
    logger.info({ draining: wanted, ...this.#waits() }, "drain");
    this.look();
    onChange();
  }

  /** Says so, once, where the shard may be terminated now; again where it was needed in between. */
  look(): void {
    if (this.#ended) return;
    const { released } = this;
    if (released && !this.#saidSafe) this.#options.logger.info("safe to terminate");
    this.#saidSafe = released;
  }

  /** A router says why no shard that stays has room for what this one holds; empty: one has. */
  tell(unplaceable: string): void {
    if (unplaceable === this.#unplaceable || !this.#draining) return;
    this.#unplaceable = unplaceable;
    if (unplaceable === "") this.#options.logger.info("another shard has room now");
    else this.#warn();
  }

  /** Has the shard leave. Settles when it may go: released, without routers, or `timeoutMs` over. */
  async wait(timeoutMs: number): Promise<LeavingEnd> {
    const end = await this.#wait(timeoutMs);
    // What happens from here on is its own stop.
    this.#ended = true;
    return end;
  }

  async #wait(timeoutMs: number): Promise<LeavingEnd> {
    this.#endsAt = performance.now() + timeoutMs;
    if (this.#draining && this.#unplaceable !== "") this.#warn();
    this.set(true);
    for (;;) {
      if (this.#options.numRouters() === 0) {
        return { inOrder: true, reason: "no router is connected" };
      }
      if (this.released) return { inOrder: true, reason: "nothing is placed on it" };
      if (performance.now() >= this.#endsAt) {
        return { inOrder: false, reason: `not released within ${timeoutMs / 1000} s` };
      }
      await pause(POLL_MS);
    }
  }

  #warn(): void {
    const { logger, held } = this.#options;
    const facts = { reason: this.#unplaceable, ...held(), ...this.#waits() };
    logger.warn(facts, "no shard that stays has room for what this one holds: it serves on");
  }

  /** Seconds until it leaves whatever holds it up. */
  #waits(): { readonly leavesInSeconds?: number } {
    if (this.#endsAt === undefined) return {};
    return {
      leavesInSeconds: Math.max(0, Math.round((this.#endsAt - performance.now()) / 100) / 10),
    };
  }
}
