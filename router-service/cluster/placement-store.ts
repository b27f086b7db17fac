/**
 * Where the placement of a model stands, for all of its routers: in Redis, version 1, or in memory.
 *
 * `{hash}` is the model hash in braces, as in core/statistics/encoding.ts; where routers list their shards instead of
 * finding them, a digest of the list follows it, so that only those with the same list share a placement.
 *
 * | key                               | type   | content                                                      | expires after   |
 * | --------------------------------- | ------ | ------------------------------------------------------------ | --------------- |
 * | `switchyard:v1:{hash}:placement`  | hash   | `epoch`: decimal; `body`: JSON of stored-placement.ts; `unplaceable`: text, where it is so | 1 day, renewed by every look at it |
 * | `switchyard:v1:{hash}:lease`      | string | token of the router that plans (lease.ts)                    | 3 s, renewed    |
 *
 * A placement replaces another by one script that compares the lease's token and the epoch: what a router publishes
 * that has lost its lease, or has not seen the last epoch, is refused.
 */

import type { RedisConnection } from "../../core/platform/redis.ts";
import { decodePlacement, encodePlacement, type StoredPlacement } from "./stored-placement.ts";

/** What became of a placement: it stands; the lease is another's; an epoch stands that the planner has not seen. */
export type PublishOutcome = "published" | "not leading" | "outdated";

/** Holds the placement that all routers of a model use. Its methods reject with a RedisUnavailableError. */
export interface PlacementStore {
  /** Other routers may publish to it. */
  readonly shared: boolean;
  /** What stands, in short. */
  look(): Promise<StoreLook>;
  /** The placement that stands; undefined where there is none. Rejects with a StoredPlacementError where it can not be read. */
  read(): Promise<StoredPlacement | undefined>;
  /** Puts a placement in the place of the one of epoch `after`, 0 for none. */
  publish(
    stored: StoredPlacement,
    terms: { readonly after: number; readonly token: string },
  ): Promise<PublishOutcome>;
  /** Says why no shard has room for experts without a copy; undefined where that is over. Does nothing without the lease. */
  setUnplaceable(reason: string | undefined, token: string): Promise<void>;
}

/** What stands in a store, in short. */
export interface StoreLook {
  /** 0 where there is none. */
  readonly epoch: number;
  /** Why no shard has room for experts without a copy. */
  readonly unplaceable: string | undefined;
}

/** Keys of one model. */
export function placementKeys(modelHash: string) {
  const prefix = `switchyard:v1:{${modelHash}}`;
  return { placement: `${prefix}:placement`, lease: `${prefix}:lease` };
}

/** The store of a router that plans for itself. */
export function createMemoryStore(): PlacementStore {
  let current: StoredPlacement | undefined;
  let unplaceable: string | undefined;
  const epoch = () => current?.placement.epoch ?? 0;
  return {
    shared: false,
    look: async () => ({ epoch: epoch(), unplaceable }),
    read: async () => current,
    publish: async (stored, { after }) => {
      if (epoch() !== after) return "outdated";
      current = stored;
      return "published";
    },
    setUnplaceable: async (reason) => {
      unplaceable = reason;
    },
  };
}

const EXPIRY_SECONDS = 86_400;

const PUBLISH = `
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 'not leading' end
if (redis.call('HGET', KEYS[1], 'epoch') or '0') ~= ARGV[2] then return 'outdated' end
redis.call('HSET', KEYS[1], 'epoch', ARGV[3], 'body', ARGV[4])
redis.call('EXPIRE', KEYS[1], ARGV[5])
return 'published'
`;

const SAY_UNPLACEABLE = `
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
if ARGV[2] == '' then return redis.call('HDEL', KEYS[1], 'unplaceable') end
redis.call('HSET', KEYS[1], 'unplaceable', ARGV[2])
return redis.call('EXPIRE', KEYS[1], ARGV[3])
`;

/** The store of several routers. */
export function createRedisStore(redis: RedisConnection, modelHash: string): PlacementStore {
  const keys = placementKeys(modelHash);
  return {
    shared: true,
    look: async () => {
      const [fields] = await redis.pipeline([
        ["HMGET", keys.placement, "epoch", "unplaceable"],
        ["EXPIRE", keys.placement, EXPIRY_SECONDS],
      ]);
      const [epoch, unplaceable] = fields as (Buffer | null)[];
      return { epoch: Number(epoch ?? 0), unplaceable: unplaceable?.toString("utf8") };
    },
    read: async () => {
      const [body] = await redis.pipeline([["HGET", keys.placement, "body"]]);
      return body === null ? undefined : decodePlacement((body as Buffer).toString("utf8"));
    },
    publish: async (stored, { after, token }) => {
      const { epoch } = stored.placement;
      const values = [token, after, epoch, encodePlacement(stored), EXPIRY_SECONDS];
      const [outcome] = await redis.pipeline([
        ["EVAL", PUBLISH, 2, keys.placement, keys.lease, ...values],
      ]);
      return String(outcome) as PublishOutcome;
    },
    setUnplaceable: async (reason, token) => {
      const script = ["EVAL", SAY_UNPLACEABLE, 2, keys.placement, keys.lease] as const;
      await redis.pipeline([[...script, token, reason ?? "", EXPIRY_SECONDS]]);
    },
  };
}
