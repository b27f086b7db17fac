/** Has a router work by the placement that stands in the store. */

import { errorMessage } from "../../../core/error-message.ts";
import type { Log } from "../../../core/platform/log.ts";
import { RedisUnavailableError } from "../../../core/platform/redis.ts";
import type { Cluster } from "../cluster.ts";
import type { ClusterPlacement } from "./first-placement.ts";
import { type PlacementStore, UnreadablePlacementError } from "./placement-store.ts";
import type { StoredPlacement } from "./stored-placement.ts";

/** What a follower needs. */
export interface FollowerOptions {
  readonly store: PlacementStore;
  readonly cluster: Pick<Cluster, "adopt" | "current" | "setUnplaceable">;
  /** Called with how long the shards took to get from one placement to the next. */
  readonly onMoved?: (before: ClusterPlacement, after: StoredPlacement, seconds: number) => void;
  /** Called when the router works by another epoch, or could not go to one. */
  readonly onChange: () => void;
  readonly log: Pick<Log, "info" | "warn">;
}

const POLL_MS = 250;

/** Pause after an adoption that failed, milliseconds. */
const RETRY_MS = 1_000;

/** A router that follows the store. */
export class PlacementFollower {
  readonly #options: FollowerOptions;
  readonly #timer: NodeJS.Timeout;
  #looking: Promise<void> | undefined;
  #adoption: { readonly stored: StoredPlacement; readonly abort: AbortController } | undefined;
  #adopting: Promise<void> = Promise.resolve();
  #stored: StoredPlacement | undefined;
  #failure: { readonly epoch: number; readonly at: number; readonly reason: string } | undefined;
  #unreadable: string | undefined;
  #unplaceable: string | undefined;
  /** A look was asked for during one. */
  #again = false;
  #closed = false;

  constructor(options: FollowerOptions) {
    this.#options = options;
    this.#timer = setInterval(() => this.look(), POLL_MS);
    this.#timer.unref();
    this.look();
  }

  /** The last placement that was adopted, with why it was planned; undefined before the first. */
  stored(): StoredPlacement | undefined {
    return this.#stored;
  }

  /** The placement that is being adopted, else the last one that was. */
  newest(): StoredPlacement | undefined {
    return this.#adoption?.stored ?? this.#stored;
  }

  /** Has the router work by a placement of its own that the store can not be told of, as it is away. */
  take(stored: StoredPlacement): void {
    if (!this.#closed) this.#begin(stored);
  }

  /** Why no shard has room for experts without a copy, as the store last said; undefined where that is not so. */
  unplaceable(): string | undefined {
    return this.#unplaceable;
  }

  /** Takes note of what the store can not be told of: why no shard has room; undefined where that is over. */
  takeUnplaceable(reason: string | undefined): void {
    if (reason !== this.#unplaceable) this.#options.cluster.setUnplaceable(reason);
    this.#unplaceable = reason;
  }

  /** Why the router can not work by this epoch; undefined while it may. */
  failure(epoch: number): string | undefined {
    return this.#failure?.epoch === epoch ? this.#failure.reason : undefined;
  }

  /** Looks into the store now. */
  look(): void {
    if (this.#closed) return;
    this.#again = this.#looking !== undefined;
    this.#looking ??= this.#look()
      .catch((error: unknown) => {
        // While Redis is away, the router goes on as it is. What can not be read, the one that plans replaces, and says so.
        if (error instanceof RedisUnavailableError) return;
        if (error instanceof UnreadablePlacementError) return;
        const reason = errorMessage(error);
        if (reason !== this.#unreadable) {
          this.#options.log.warn({ reason }, "the stored placement can not be used");
        }
        this.#unreadable = reason;
      })
      .finally(() => {
        this.#looking = undefined;
        if (this.#again) this.look();
      });
  }

  /** Stops looking; an adoption that is under way is given up. */
  async close(): Promise<void> {
    this.#closed = true;
    clearInterval(this.#timer);
    this.#adoption?.abort.abort(new Error("the router is stopping"));
    await this.#looking;
    await this.#adopting;
  }

  async #look(): Promise<void> {
    const { store } = this.#options;
    const { epoch, unplaceable } = await store.look();
    const used = this.#usedEpoch();
    this.takeUnplaceable(unplaceable);
    // The one in use is read once for its reasons. Redis may have lost what the routers know.
    const known = epoch === used && this.#stored?.placement.epoch === epoch;
    if (epoch === 0 || epoch < used || known || this.#adoptionEpoch() === epoch) return;
    const failed = this.#failure;
    if (failed?.epoch === epoch && performance.now() - failed.at < RETRY_MS) return;
    const stored = await store.read();
    this.#unreadable = undefined;
    if (stored === undefined || this.#closed) return;
    // One of its own may have come meanwhile.
    if (stored.placement.epoch >= this.#usedEpoch()) this.#begin(stored);
  }

  #adoptionEpoch(): number {
    return this.#adoption?.stored.placement.epoch ?? 0;
  }

  /** The newest epoch that the router works by or is on its way to; 0 before the first. */
  #usedEpoch(): number {
    const current = this.#options.cluster.current()?.placement.epoch ?? 0;
    return Math.max(current, this.#adoptionEpoch());
  }

  #begin(stored: StoredPlacement): void {
    const { epoch } = stored.placement;
    this.#adoption?.abort.abort(new Error(`placement ${epoch} follows`));
    const abort = new AbortController();
    this.#adoption = { stored, abort };
    this.#adopting = this.#adopting.then(() => this.#adopt(stored, abort.signal));
  }

  /** Never rejects. */
  async #adopt(stored: StoredPlacement, signal: AbortSignal): Promise<void> {
    const { cluster, log, onMoved, onChange } = this.#options;
    const { epoch } = stored.placement;
    const before = cluster.current();
    const beganAt = performance.now();
    try {
      await cluster.adopt(stored, signal);
      if (before !== undefined && before.placement.epoch < epoch) {
        onMoved?.(before, stored, (performance.now() - beganAt) / 1000);
      }
      this.#stored = stored;
      this.#failure = undefined;
    } catch (error) {
      if (signal.aborted) return;
      const reason = errorMessage(error);
      if (this.#failure?.epoch !== epoch) log.warn({ epoch, reason }, "placement not adopted");
      this.#failure = { epoch, at: performance.now(), reason };
    } finally {
      if (this.#adoptionEpoch() === epoch) this.#adoption = undefined;
    }
    onChange();
  }
}
