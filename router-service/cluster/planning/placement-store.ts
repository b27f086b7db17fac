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
 * that has lost its lease, or has not seen the last epoch, is refused. What can not be read there is replaced likewise.
 */

import { errorMessage } from "../../../core/error-message.ts";
import type { RedisConnection } from "../../../core/platform/redis.ts";
import { claimedEpoch, decodePlacement, encodePlacement } from "./stored-placement.ts";
import { type StoredPlacement, StoredPlacementError } from "./stored-placement.ts";

/** What became of a placement: it stands; the lease is another's; an epoch stands that the planner has not seen. */
export type PublishOutcome = "published" | "not leading" | "outdated";

/** What a placement is to replace: the one of an epoch, 0 for none; bytes that are none. */
export type Standing = number | Buffer;

/** What stands in a store is no placement that this version can read. */
export class UnreadablePlacementError extends Error {
  override readonly name = "UnreadablePlacementError";
  readonly stands: Standing;
  /** Newest epoch that it claims to be of; 0 where none can be made out. */
  readonly epoch: number;
  constructor(key: string, reason: string, stands: Standing, epoch: number) {
    super(`${key}: ${reason}`);
    this.stands = stands;
    this.epoch = epoch;
  }
}

/**
 * Holds the placement that all routers of a model use. Its methods reject with a RedisUnavailableError, `look` and `read`
 * with an UnreadablePlacementError too.
 */
export interface PlacementStore {
  /** Other routers may publish to it. */
  readonly shared: boolean;
  /** It can not be reached now. */
  isAway(): boolean;
  /** What stands, in short. */
  look(): Promise<StoreLook>;
  /** The placement that stands; undefined where there is none. */
  read(): Promise<StoredPlacement | undefined>;
  /** Puts a placement in the place of `after`. */
  publish(
    stored: StoredPlacement,
    terms: { readonly after: Standing; readonly token: string },
  ): Promise<PublishOutcome>;
  /** Says why no shard has room for experts without a copy; undefined where that is over. Does nothing without the lease. */
  setUnplaceable(reason: string | undefined, token: string): Promise<void>;
}

/** What stands in a store, to be replaced. */
export interface FoundPlacement {
  /** Undefined where there is none, or none that can be read. */
  readonly stored: StoredPlacement | undefined;
  readonly after: Standing;
  /** The epoch that it is of, or claims to be; 0 where there is none. */
  readonly epoch: number;
  /** Why it can not be read; undefined where it can. */
  readonly unreadable: string | undefined;
}

/** What stands in a store. Rejects with a RedisUnavailableError. */
export async function findPlacement(store: Pick<PlacementStore, "read">): Promise<FoundPlacement> {
  try {
    const stored = await store.read();
    const epoch = stored?.placement.epoch ?? 0;
    return { stored, after: epoch, epoch, unreadable: undefined };
  } catch (error) {
    if (!(error instanceof UnreadablePlacementError)) throw error;
    const { message: unreadable, stands: after, epoch } = error;
    return { stored: undefined, after, epoch, unreadable };
  }
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
    isAway: () => false,
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
local kind = redis.call('TYPE', KEYS[1]).ok
local isHash = kind == 'hash' or kind == 'none'
local stands = 'no hash'
if isHash then stands = redis.call('HGET', KEYS[1], 'epoch') or '0' end
if stands ~= ARGV[2] then return 'outdated' end
if not isHash then redis.call('DEL', KEYS[1]) end
redis.call('HSET', KEYS[1], 'epoch', ARGV[3], 'body', ARGV[4])
redis.call('EXPIRE', KEYS[1], ARGV[5])
return 'published'
`;

/** As PUBLISH calls it. */
const NO_HASH = Buffer.from("no hash");

const SAY_UNPLACEABLE = `
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
if ARGV[2] == '' then return redis.call('HDEL', KEYS[1], 'unplaceable') end
redis.call('HSET', KEYS[1], 'unplaceable', ARGV[2])
return redis.call('EXPIRE', KEYS[1], ARGV[3])
`;

/** The store of several routers. */
export function createRedisStore(redis: RedisConnection, modelHash: string): PlacementStore {
  const keys = placementKeys(modelHash);
  const fieldsOf = async (...names: readonly string[]) => {
    try {
      const [fields] = await redis.pipeline([
        ["HMGET", keys.placement, ...names],
        ["EXPIRE", keys.placement, EXPIRY_SECONDS],
      ]);
      return fields as readonly (Buffer | null)[];
    } catch (error) {
      if (!errorMessage(error).startsWith("WRONGTYPE")) throw error;
      throw new UnreadablePlacementError(keys.placement, "it is no hash", NO_HASH, 0);
    }
  };
  return {
    shared: true,
    isAway: () => !redis.isReady(),
    look: async () => {
      const [epoch, unplaceable] = await fieldsOf("epoch", "unplaceable");
      const known = epochOf(epoch);
      if (known === undefined) {
        throw unreadable(keys.placement, `its epoch is ${nameOf(epoch)}`, epoch, "");
      }
      return { epoch: known, unplaceable: unplaceable?.toString("utf8") };
    },
    read: async () => {
      const [epoch, body] = await fieldsOf("epoch", "body");
      return readFields(keys.placement, epoch, body);
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

/** The epoch that a field says, 0 where it is absent; undefined where it says none. */
function epochOf(field: Buffer | null): number | undefined {
  const text = field?.toString("latin1") ?? "0";
  const epoch = Number(text);
  return /^\d+$/.test(text) && Number.isSafeInteger(epoch) ? epoch : undefined;
}

function unreadable(key: string, reason: string, field: Buffer | null, body: string) {
  const epoch = Math.max(epochOf(field) ?? 0, claimedEpoch(body));
  return new UnreadablePlacementError(key, reason, field ?? 0, epoch);
}

/** The placement of a hash's fields. Throws UnreadablePlacementError. */
function readFields(
  key: string,
  field: Buffer | null,
  body: Buffer | null,
): StoredPlacement | undefined {
  if (field === null && body === null) return undefined;
  const text = body?.toString("utf8") ?? "";
  let stored: StoredPlacement;
  try {
    stored = decodePlacement(text);
  } catch (error) {
    if (!(error instanceof StoredPlacementError)) throw error;
    throw unreadable(key, error.message, field, text);
  }
  const { epoch } = stored.placement;
  if (epochOf(field) === epoch) return stored;
  throw unreadable(key, `its epoch is ${nameOf(field)}, its body's ${epoch}`, field, text);
}

/** What an epoch field says, in short. */
function nameOf(field: Buffer | null): string {
  return field === null ? "absent" : JSON.stringify(field.toString("latin1").slice(0, 40));
}
