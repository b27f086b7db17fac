/**
 * Who is there: shards and routers of one model, as they register themselves in Redis.
 *
 * A member writes its registration every second; it expires after five, so a member that died or can not reach Redis
 * is gone by then. `{hash}` is the model hash in braces, so that a Redis Cluster keeps a model's keys together.
 *
 * | key                                      | type   | content                                | expires after |
 * | ---------------------------------------- | ------ | -------------------------------------- | ------------- |
 * | `switchyard:v1:{hash}:shard:<rank>`      | string | JSON of ShardRegistration              | 5 s           |
 * | `switchyard:v1:{hash}:shards`            | set    | ranks that may have a registration     | 1 day         |
 * | `switchyard:v1:{hash}:router:<id>`       | string | JSON of RouterRegistration             | 5 s           |
 * | `switchyard:v1:{hash}:routers`           | set    | ids that may have a registration       | 1 day         |
 * | `switchyard:v1:{hash}:left:<incarnation>`| string | 1, for a member that left in order     | 1 minute      |
 * | `switchyard:v1:models`                   | zset   | hashes of models with shards, by the time in ms of a shard's last heartbeat | 5 s |
 */

import { z } from "zod";

import type { RedisCommand, RedisConnection } from "./platform/redis.ts";

/** Milliseconds between two heartbeats of a member. */
export const HEARTBEAT_MS = 1_000;

/** Milliseconds after its last heartbeat that a member counts as gone. */
export const MEMBER_EXPIRY_MS = 5_000;

const INDEX_EXPIRY_SECONDS = 86_400;

/** Longer than anybody remembers a member whose registration is gone. */
const LEFT_EXPIRY_MS = 60_000;

/** Another process is registered under the same rank or id. */
export class MemberConflictError extends Error {
  override readonly name = "MemberConflictError";
}

const shardSchema = z.object({
  kind: z.literal("shard"),
  rank: z.int().min(0).max(65535),
  /** Host and port where routers and other shards reach it. */
  address: z.string(),
  /** Description of what computes. */
  adapter: z.string(),
  /** Device memory that expert weights may take, and that they take now, bytes. */
  memoryBytes: z.number(),
  residentBytes: z.number(),
  /** Experts of a step's row that it computes in a second; 0 where it was not measured. */
  pairsPerSecond: z.number(),
  /** Largest error of its kernels, as a share of the magnitudes added up. */
  tolerance: z.number(),
  /** Its --weights and --experts-bits. */
  weights: z.string(),
  experts: z.string(),
  /** Made anew by every start of the process. */
  incarnation: z.string(),
  draining: z.boolean(),
  /** It may be terminated: no live epoch places anything on it. */
  released: z.boolean(),
  /** Experts in device memory, over all layers. */
  residentExperts: z.number(),
  /** The newest live epoch; 0 where there is none. */
  epoch: z.number(),
});

/** Shards that are told of at most; who tells of more is not heard. */
const MAX_TOLD_SHARDS = 4096;

const measured = z.number().nonnegative().optional();

const sightSchema = z.object({
  /** Of late, through its model. */
  tokensPerSecond: z.number().nonnegative(),
  /** What it has measured of each shard; what it does not know is absent. */
  shards: z
    .array(
      z.object({
        rank: z.int().min(0).max(65535),
        /** Time of a dispatch whatever its size. */
        roundTripSeconds: measured,
        bytesPerSecond: measured,
        secondsPerPair: measured,
        /** Answers that this was measured on. */
        samples: z.number().nonnegative(),
        /** Standard deviation of what dispatches took, as a part of it. */
        spread: z.number().nonnegative(),
      }),
    )
    .max(MAX_TOLD_SHARDS),
});

const routerSchema = z.object({
  kind: z.literal("router"),
  id: z.string(),
  /** Made anew by every start of the process. */
  incarnation: z.string(),
  /** Host and port of its HTTP and its gRPC front end. */
  httpAddress: z.string(),
  grpcAddress: z.string(),
  /** The epoch that it dispatches by; 0 before the first. */
  epoch: z.number(),
  /** Memory of its own device that routed experts may take, bytes. */
  localBytes: z.number().default(0),
  /** What it sees of the shards. One that can not be read is none: the router is there all the same. */
  sight: sightSchema.optional().catch(undefined),
});

/** What a shard says of itself. */
export type ShardRegistration = Readonly<z.output<typeof shardSchema>>;

/** What a router says of itself. */
export type RouterRegistration = Readonly<z.output<typeof routerSchema>>;

/** What a router sees of the shards, and how much of the traffic is its own. */
export type RouterSight = Readonly<z.output<typeof sightSchema>>;

/** What any member says of itself. */
export type Registration = ShardRegistration | RouterRegistration;

/** Everyone who is there. */
export interface Members {
  /** By rank, ascending. */
  readonly shards: readonly ShardRegistration[];
  /** By id, ascending. */
  readonly routers: readonly RouterRegistration[];
}

/** Keys of a model's members. */
export function membershipKeys(modelHash: string) {
  const prefix = `switchyard:v1:{${modelHash}}`;
  return {
    shards: `${prefix}:shards`,
    shard: (rank: number | string) => `${prefix}:shard:${rank}`,
    routers: `${prefix}:routers`,
    router: (id: string) => `${prefix}:router:${id}`,
    left: (incarnation: string) => `${prefix}:left:${incarnation}`,
  };
}

/** Models that have shards of late: who looks for shards of one need not scan a Redis for the others. */
const MODELS_KEY = "switchyard:v1:models";

/** Other models that are looked for at most. */
const MAX_OTHER_MODELS = 8;

/** JSON of a registration. */
export function encodeRegistration(registration: Registration): string {
  return JSON.stringify(registration);
}

/** A registration of its JSON; undefined where it is none of this version. */
export function decodeRegistration(json: string): Registration | undefined {
  let value: unknown;
  try {
    value = JSON.parse(json);
  } catch {
    return undefined;
  }
  const parsed = z.discriminatedUnion("kind", [shardSchema, routerSchema]).safeParse(value);
  return parsed.success ? parsed.data : undefined;
}

/**
 * Writes a registration unless another process holds the name. One that listens where we do is dead: we have its port.
 * KEYS: registration, index; ARGV: JSON, expiry in ms, name, incarnation, address, expiry of the index in s.
 * Answers "" or the JSON that stands.
 */
const ANNOUNCE = `
local old = redis.call('GET', KEYS[1])
if old then
  local ok, other = pcall(cjson.decode, old)
  if ok and other.incarnation ~= ARGV[4] and (other.address or other.httpAddress) ~= ARGV[5] then return old end
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('SADD', KEYS[2], ARGV[3])
redis.call('EXPIRE', KEYS[2], ARGV[6])
return ''
`;

/** Notes that a model has a shard. KEYS: models; ARGV: model hash, expiry in ms. */
const NOTE_MODEL = `
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return ''
`;

/** Removes a registration that is ours, and says that we left. KEYS: registration, index, left; ARGV: name, incarnation, its expiry in ms. */
const WITHDRAW = `
local old = redis.call('GET', KEYS[1])
if not old then return 0 end
local ok, other = pcall(cjson.decode, old)
if ok and other.incarnation ~= ARGV[2] then return 0 end
redis.call('DEL', KEYS[1])
redis.call('SREM', KEYS[2], ARGV[1])
redis.call('SET', KEYS[3], 1, 'PX', ARGV[3])
return 1
`;

/** The registrations that stand; names without one leave the index. KEYS: index; ARGV: prefix of the registrations' keys. */
const READ = `
local found = {}
for _, name in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local json = redis.call('GET', ARGV[1] .. name)
  if json then found[#found + 1] = json else redis.call('SREM', KEYS[1], name) end
end
return found
`;

/** Registers a member for MEMBER_EXPIRY_MS. Rejects with MemberConflictError naming the other process, RedisUnavailableError. */
export async function announce(
  redis: RedisConnection,
  modelHash: string,
  member: Registration,
): Promise<void> {
  const { name, label, address, keys } = placeOf(modelHash, member);
  const command: RedisCommand = [
    "EVAL",
    ANNOUNCE,
    2,
    ...keys,
    encodeRegistration(member),
    MEMBER_EXPIRY_MS,
    name,
    member.incarnation,
    address,
    INDEX_EXPIRY_SECONDS,
  ];
  const note: RedisCommand = ["EVAL", NOTE_MODEL, 1, MODELS_KEY, modelHash, MEMBER_EXPIRY_MS];
  const commands = member.kind === "shard" ? [command, note] : [command];
  const [standing] = await redis.pipeline(commands);
  const text = String(standing);
  if (text === "") return;
  const other = decodeRegistration(text);
  const where = other === undefined ? "unknown" : placeOf(modelHash, other).address;
  const remedy = member.kind === "shard" ? "give each shard its own --rank" : "ids must differ";
  throw new MemberConflictError(
    `${label} at ${address}: the process at ${where} has it already; ${remedy}`,
  );
}

/** Takes a member's registration back, where it is its own. Rejects with RedisUnavailableError. */
export async function withdraw(
  redis: RedisConnection,
  modelHash: string,
  member: Registration,
): Promise<void> {
  const { name, keys } = placeOf(modelHash, member);
  const { incarnation } = member;
  const left = membershipKeys(modelHash).left(incarnation);
  await redis.pipeline([["EVAL", WITHDRAW, 3, ...keys, left, name, incarnation, LEFT_EXPIRY_MS]]);
}

/** Which of these incarnations took their registrations back of late; of others theirs were lost. Rejects with RedisUnavailableError. */
export async function readLeft(
  redis: RedisConnection,
  modelHash: string,
  incarnations: readonly string[],
): Promise<Set<string>> {
  const keys = membershipKeys(modelHash);
  const replies = await redis.pipeline(incarnations.map((one) => ["EXISTS", keys.left(one)]));
  return new Set(incarnations.filter((_, index) => Number(replies[index]) === 1));
}

/** Everyone whose registration stands. Rejects with RedisUnavailableError. */
export async function readMembers(redis: RedisConnection, modelHash: string): Promise<Members> {
  const keys = membershipKeys(modelHash);
  const replies = await redis.pipeline([
    ["EVAL", READ, 1, keys.shards, keys.shard("")],
    ["EVAL", READ, 1, keys.routers, keys.router("")],
  ]);
  const found = (replies as Buffer[][])
    .flat()
    .flatMap((json) => decodeRegistration(json.toString("utf8")) ?? []);
  return {
    shards: found.filter((one) => one.kind === "shard").sort((a, b) => a.rank - b.rank),
    routers: found
      .filter((one) => one.kind === "router")
      .sort((a, b) => (a.id < b.id ? -1 : Number(a.id > b.id))),
  };
}

/** Shards of another model. */
export interface OtherModel {
  readonly modelHash: string;
  readonly numShards: number;
}

/** Other models with shards, 8 at most, the one whose shard was heard last first. Rejects with RedisUnavailableError. */
export async function readOtherModels(
  redis: RedisConnection,
  modelHash: string,
): Promise<OtherModel[]> {
  const newest = ["ZREVRANGE", MODELS_KEY, 0, MAX_OTHER_MODELS] as const;
  const [hashes] = (await redis.pipeline([newest])) as [Buffer[]];
  const others = hashes.map(String).filter((hash) => hash !== modelHash);
  if (others.length === 0) return [];
  const replies = await redis.pipeline(
    others.slice(0, MAX_OTHER_MODELS).map((hash) => {
      const keys = membershipKeys(hash);
      return ["EVAL", READ, 1, keys.shards, keys.shard("")];
    }),
  );
  return (replies as Buffer[][]).flatMap(({ length }, i) =>
    length === 0 ? [] : [{ modelHash: others[i], numShards: length }],
  );
}

function placeOf(modelHash: string, member: Registration) {
  const keys = membershipKeys(modelHash);
  if (member.kind === "shard") {
    const { rank, address } = member;
    return {
      name: `${rank}`,
      label: `rank ${rank}`,
      address,
      keys: [keys.shard(rank), keys.shards] as const,
    };
  }
  const { id, httpAddress } = member;
  return {
    name: id,
    label: `router ${id}`,
    address: httpAddress,
    keys: [keys.router(id), keys.routers] as const,
  };
}
