/** Who the shards and routers of a cluster are, as they register themselves in Redis. */

import { startHeartbeat } from "../../core/heartbeat.ts";
import {
  type OtherModel,
  readLeft,
  readMembers,
  readOtherModels,
  type RouterRegistration,
  type ShardRegistration,
} from "../../core/membership.ts";
import type { Log } from "../../core/platform/log.ts";
import { RedisUnavailableError, type RedisConnection } from "../../core/platform/redis.ts";
import type { Membership, RouterMember } from "./membership-static.ts";

/** What a membership in Redis needs. */
export interface RedisMembershipOptions {
  readonly redis: RedisConnection;
  readonly modelHash: string;
  /** This router as it is now; id and incarnation never change. */
  readonly self: () => RouterRegistration;
  /** Addresses of the shards where an operator lists them; absent: those that register. */
  readonly shards?: readonly string[];
  readonly log: Pick<Log, "info" | "warn">;
  readonly pollMs?: number;
}

const POLL_MS = 500;

/**
 * Looks at Redis in a row that do not find a shard before it counts as gone: after a restart of Redis, which forgets
 * all, a shard's next heartbeat may take 4 s. A shard that is lost is noticed by its stream, long before; one that left in
 * order says so, and is gone at once.
 */
const LOOKS_TO_FORGET = 12;

/** Starts registering this router and looking who else is there. While Redis is away, those last seen stay. */
export function createRedisMembership(options: RedisMembershipOptions): Membership {
  const { redis, modelHash, self, log } = options;
  const heartbeat = startHeartbeat({
    redis,
    modelHash,
    member: self,
    onConflict: (error) => log.warn({ reason: error.message }, "this router is not registered"),
    onError: (error) => log.warn({ err: error }, "this router is not registered"),
  });
  const watch = new MemberWatch(options);
  return {
    shards: () => options.shards ?? watch.shards(),
    routers: () => watch.routers(),
    others: () => watch.others,
    seen: () => watch.seen,
    onChange: (callback) => watch.onChange(callback),
    announce: () => {
      heartbeat.changed();
      watch.notify();
    },
    close: async () => {
      await watch.close();
      await heartbeat.close();
    },
  };
}

interface SeenShard {
  readonly registration: ShardRegistration;
  /** Looks since that did not find it. */
  missed: number;
}

/** Looks at the registrations again and again. */
class MemberWatch {
  readonly #options: RedisMembershipOptions;
  readonly #timer: NodeJS.Timeout;
  readonly #shards = new Map<number, SeenShard>();
  readonly #callbacks: (() => void)[] = [];
  /** Whether Redis has answered. */
  seen = false;
  /** Shards of other models, while none of this one is found. */
  others: readonly OtherModel[] = [];
  #routers: readonly RouterRegistration[] = [];
  #running: Promise<void> | undefined;
  #known = "";
  #refused = false;

  constructor(options: RedisMembershipOptions) {
    this.#options = options;
    const pollMs = options.pollMs ?? POLL_MS;
    this.#timer = setInterval(() => this.#look(), pollMs);
    this.#timer.unref();
    void options.redis.ready(pollMs).then(
      () => this.#look(),
      () => undefined,
    );
  }

  shards(): string[] {
    return [...this.#shards.values()]
      .toSorted((a, b) => a.registration.rank - b.registration.rank)
      .map(({ registration }) => registration.address);
  }

  routers(): RouterMember[] {
    const self = this.#options.self();
    const others = this.#routers.filter(({ id }) => id !== self.id);
    return [self, ...others].map(({ id, epoch, localBytes, sight }) =>
      sight === undefined ? { id, epoch, localBytes } : { id, epoch, localBytes, sight },
    );
  }

  onChange(callback: () => void): void {
    this.#callbacks.push(callback);
  }

  notify(): void {
    for (const callback of this.#callbacks) callback();
  }

  async close(): Promise<void> {
    clearInterval(this.#timer);
    await this.#running;
  }

  #look(): void {
    if (!this.#options.redis.isReady()) return;
    this.#running ??= this.#read()
      .catch((error: unknown) => {
        if (error instanceof RedisUnavailableError) return;
        if (!this.#refused) this.#options.log.warn({ err: error }, "Redis refuses to list members");
        this.#refused = true;
      })
      .finally(() => {
        this.#running = undefined;
      });
  }

  async #read(): Promise<void> {
    const { redis, modelHash } = this.#options;
    const { shards, routers } = await readMembers(redis, modelHash);
    const isLooking = shards.length === 0 && this.#options.shards === undefined;
    this.others = isLooking ? await readOtherModels(redis, modelHash) : [];
    this.#refused = false;
    const found = new Set(shards.map(({ rank }) => rank));
    const missing = [...this.#shards].filter(([rank]) => !found.has(rank));
    const incarnations = missing.map(([, { registration }]) => registration.incarnation);
    const left = missing.length === 0 ? new Set() : await readLeft(redis, modelHash, incarnations);
    for (const [rank, seen] of missing) {
      const isOver = ++seen.missed >= LOOKS_TO_FORGET || left.has(seen.registration.incarnation);
      if (isOver) this.#forget(rank, seen);
    }
    for (const registration of shards) {
      const before = this.#shards.get(registration.rank)?.registration.address;
      this.#shards.set(registration.rank, { registration, missed: 0 });
      if (before === registration.address || this.#options.shards !== undefined) continue;
      const { rank, address, adapter } = registration;
      this.#options.log.info({ rank, shard: address, adapter, before }, "shard registered");
    }
    this.#routers = routers;
    this.seen = true;
    // What routers measure changes with every look, and is no reason to do anything.
    const using = this.routers().map(({ id, epoch, localBytes }) => ({ id, epoch, localBytes }));
    const known = JSON.stringify([this.shards(), using]);
    if (known === this.#known) return;
    this.#known = known;
    this.notify();
  }

  #forget(rank: number, { registration }: SeenShard): void {
    this.#shards.delete(rank);
    if (this.#options.shards !== undefined) return;
    const { address } = registration;
    this.#options.log.info({ rank, shard: address }, "shard no longer registered");
  }
}
