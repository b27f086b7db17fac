/** Which router plans: a lease that one router of a model holds at a time. */

import { randomUUID } from "node:crypto";

import type { Log } from "../../../core/platform/log.ts";
import { RedisUnavailableError, type RedisConnection } from "../../../core/platform/redis.ts";

/** A share in the leadership of a model's routers. */
export interface Lease {
  /** What the placement store asks for before it takes a placement; undefined while this router does not lead. */
  token(): string | undefined;
  /** Whether this router led when it last heard of the lease: it may have run out since, unheard, while Redis is away. */
  ledLast(): boolean;
  /** Tries to lead now rather than at the next turn. */
  campaign(): void;
  /** Registers what to call when this router begins to lead. */
  onLeading(callback: () => void): void;
  /** Gives the lease up, so that another router may lead at once. */
  close(): Promise<void>;
}

/** The lease of a router that plans for itself: always held. */
export function createOwnLease(): Lease {
  const token = randomUUID();
  return {
    token: () => token,
    ledLast: () => true,
    campaign: () => undefined,
    onLeading: (callback) => callback(),
    close: async () => undefined,
  };
}

/** How a lease in Redis is kept. */
export interface RedisLeaseOptions {
  readonly redis: RedisConnection;
  /** Key of the lease: `placementKeys(modelHash).lease`. */
  readonly key: string;
  readonly log: Pick<Log, "info" | "warn">;
  /** Whether this router may lead now; absent: always. */
  readonly eligible?: () => boolean;
  /** How long the lease holds without being renewed, milliseconds. */
  readonly holdMs?: number;
}

const HOLD_MS = 3_000;

/** Extends the lease where it is still the caller's; whether it is. */
const RENEW = `
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
`;

/** Ends the lease where it is still the caller's. */
const RELEASE = `
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
`;

/**
 * Starts to campaign for a lease in Redis. It is renewed three times within its time; a router that could not renew it
 * stops leading when its own clock says that it may have ended, and the store refuses the token of a lease that has.
 */
export function createRedisLease(options: RedisLeaseOptions): Lease {
  return new RedisLease(options);
}

class RedisLease implements Lease {
  readonly #options: RedisLeaseOptions;
  readonly #holdMs: number;
  readonly #timer: NodeJS.Timeout;
  readonly #callbacks: (() => void)[] = [];
  #token: string | undefined;
  #ledLast = false;
  /** `performance.now()` when Redis, which had answered before, was last found away. */
  #awayAt = -Infinity;
  #wasThere = false;
  /** `performance.now()` until which the lease certainly holds. */
  #holdsUntil = 0;
  #running: Promise<void> | undefined;
  /** Redis refused the last attempt. */
  #refused = false;
  #closed = false;

  constructor(options: RedisLeaseOptions) {
    this.#options = options;
    this.#holdMs = options.holdMs ?? HOLD_MS;
    this.#timer = setInterval(() => this.campaign(), this.#holdMs / 3);
    this.#timer.unref();
    void options.redis.ready(this.#holdMs).then(
      () => this.campaign(),
      () => undefined,
    );
  }

  token(): string | undefined {
    return performance.now() < this.#holdsUntil ? this.#token : undefined;
  }

  ledLast(): boolean {
    return this.#ledLast;
  }

  campaign(): void {
    if (this.#closed) return;
    this.#running ??= this.#attempt()
      .catch((error: unknown) => {
        // Redis is away: until the lease has run out, nobody else can have it.
        if (error instanceof RedisUnavailableError) return;
        if (!this.#refused) {
          this.#options.log.warn({ err: error }, "Redis refuses the planner's lease");
        }
        this.#refused = true;
      })
      .finally(() => {
        this.#running = undefined;
        if (this.#token !== undefined && this.token() === undefined) this.#lose();
      });
  }

  onLeading(callback: () => void): void {
    this.#callbacks.push(callback);
    if (this.token() !== undefined) callback();
  }

  async close(): Promise<void> {
    this.#closed = true;
    clearInterval(this.#timer);
    await this.#running;
    await this.#release();
  }

  async #attempt(): Promise<void> {
    const { redis, key, eligible = () => true } = this.#options;
    const sentAt = performance.now();
    if (!redis.isReady()) {
      if (this.#wasThere) this.#awayAt = sentAt;
      return;
    }
    this.#wasThere = true;
    // The one that led goes first: it may have planned for itself meanwhile.
    if (!this.#ledLast && sentAt - this.#awayAt < this.#holdMs) return;
    if (!eligible()) {
      await this.#release();
      return;
    }
    if (this.#token !== undefined) {
      if ((await this.#script(RENEW, this.#token, this.#holdMs)) === 1) {
        this.#holdsUntil = sentAt + this.#holdMs;
        this.#refused = false;
        return;
      }
      this.#ledLast = false;
      this.#lose();
    }
    const token = randomUUID();
    const [taken] = await redis.pipeline([["SET", key, token, "NX", "PX", this.#holdMs]]);
    this.#refused = false;
    this.#ledLast = taken !== null;
    if (taken === null) return;
    this.#token = token;
    this.#holdsUntil = sentAt + this.#holdMs;
    // Given back by what waits for this.
    if (this.#closed) return;
    this.#options.log.info({}, "this router plans");
    for (const callback of this.#callbacks) callback();
  }

  async #release(): Promise<void> {
    const token = this.#token;
    this.#ledLast = false;
    this.#lose();
    if (token === undefined || !this.#options.redis.isReady()) return;
    // Unanswered: it ends by itself.
    await this.#script(RELEASE, token).catch(() => undefined);
  }

  async #script(script: string, token: string, ...args: number[]): Promise<unknown> {
    const { redis, key } = this.#options;
    const [reply] = await redis.pipeline([["EVAL", script, 1, key, token, ...args]]);
    return reply;
  }

  #lose(): void {
    if (this.#token !== undefined && !this.#closed) {
      this.#options.log.warn({}, "this router no longer plans");
    }
    this.#token = undefined;
    this.#holdsUntil = 0;
  }
}
