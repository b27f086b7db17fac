/** Keeps a member's registration standing for as long as the process lives. */

import {
  announce,
  HEARTBEAT_MS,
  MEMBER_EXPIRY_MS,
  MemberConflictError,
  type Registration,
  withdraw,
} from "./membership.ts";
import { type RedisConnection, RedisUnavailableError } from "./platform/redis.ts";

/** A member that is killed and started elsewhere finds its own registration for this long, milliseconds. */
const CONFLICT_GRACE_MS = MEMBER_EXPIRY_MS + 2_000;

/** What a heartbeat needs. */
export interface HeartbeatOptions {
  readonly redis: RedisConnection;
  readonly modelHash: string;
  /** The registration as it is now; incarnation and name never change. */
  readonly member: () => Registration;
  /** Another process has held the name for as long as this one tried to get it. Called once. */
  readonly onConflict: (error: MemberConflictError) => void;
  /** A registration was refused or failed for another reason than that Redis is away. Called once per run of failures. */
  readonly onError: (error: unknown) => void;
  readonly intervalMs?: number;
  readonly conflictGraceMs?: number;
}

/** A running heartbeat. */
export interface Heartbeat {
  /** Registers at once instead of at the next beat. */
  changed(): void;
  /** Stops, and takes the registration back where Redis answers. */
  close(): Promise<void>;
}

/** Starts registering at once and then each interval. Redis may be away: the registration follows when it is back. */
export function startHeartbeat(options: HeartbeatOptions): Heartbeat {
  const { redis, modelHash, member, onConflict, onError } = options;
  const graceMs = options.conflictGraceMs ?? CONFLICT_GRACE_MS;
  let conflictSince: number | undefined;
  let registered = false;
  let failing = false;
  let closed = false;
  let running: Promise<void> | undefined;

  const once = async () => {
    if (!redis.isReady()) return;
    try {
      await announce(redis, modelHash, member());
      registered = true;
      failing = false;
      conflictSince = undefined;
    } catch (error) {
      if (error instanceof RedisUnavailableError || closed) return;
      if (error instanceof MemberConflictError && !registered) {
        // Who served before stays: a member that was registered keeps trying.
        conflictSince ??= performance.now();
        if (performance.now() - conflictSince < graceMs) return;
        closed = true;
        clearInterval(timer);
        onConflict(error);
        return;
      }
      if (!failing) onError(error);
      failing = true;
    }
  };
  const beat = () => {
    if (closed) return;
    running ??= once().finally(() => {
      running = undefined;
    });
  };
  const timer = setInterval(beat, options.intervalMs ?? HEARTBEAT_MS);
  timer.unref();
  redis.ready(MEMBER_EXPIRY_MS).then(beat, () => undefined);
  return {
    changed: beat,
    close: async () => {
      closed = true;
      clearInterval(timer);
      await running;
      if (!registered || !redis.isReady()) return;
      try {
        await withdraw(redis, modelHash, member());
      } catch (error) {
        if (!(error instanceof RedisUnavailableError)) throw error;
      }
    },
  };
}
