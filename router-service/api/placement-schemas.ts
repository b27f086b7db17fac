/** Body of POST /v1/placement/plan. */

import { z } from "zod";

import { POLICIES } from "../../core/placement/input.ts";
import { LOCAL_RANK, MAX_SHARD_RANK } from "../../core/placement/placement.ts";
import type { WhatIf } from "../cluster/planning/what-if.ts";

const MAX_SHARDS = 4_096;
/** What is supposed stays within these, so that sums and products of it are finite. */
const MAX_SECONDS = 3_600;
const MAX_AMOUNT = 1e15;

const rankSchema = z.custom<number | "local">(
  (rank) =>
    rank === "local" ||
    (Number.isInteger(rank) && Number(rank) >= 0 && Number(rank) <= MAX_SHARD_RANK),
  `expected an integer from 0 to ${MAX_SHARD_RANK} or "local"`,
);

const shardSchema = closedObject({
  rank: rankSchema,
  memory_bytes: z.number().min(0).max(MAX_AMOUNT).optional(),
  seconds_per_pair: z.number().positive().max(MAX_SECONDS).optional(),
  rtt_seconds: z.number().min(0).max(MAX_SECONDS).optional(),
  bytes_per_second: z.number().min(1).max(MAX_AMOUNT).optional(),
  draining: z.boolean().optional(),
  absent: z.boolean().optional(),
});

/** Schema of the body; what is absent stays as it is, and a field that is none is refused: its answer would be another question's. */
export const planBodySchema = closedObject({
  shards: z.array(shardSchema).max(MAX_SHARDS).optional(),
  tokens_per_step: z.number().positive().max(MAX_AMOUNT).optional(),
  load: z
    .record(
      z.string().regex(/^\d{1,6}$/, "expected the index of an MoE layer"),
      z.array(z.number().min(0).max(MAX_AMOUNT)),
    )
    .optional(),
  from: z.enum(["current", "nothing"]).optional(),
  min_copies: z.int().min(1).max(64).optional(),
  policy: z.enum(POLICIES).optional(),
  move_bytes: z.number().min(0).max(MAX_AMOUNT).optional(),
  steps: z.number().positive().max(MAX_AMOUNT).optional(),
  include_layers: z.boolean().optional(),
});

/** An object of these fields and no other: one that is refused names those that there are. */
function closedObject<S extends z.ZodRawShape>(shape: S) {
  return z.strictObject(shape, {
    error: ({ code }) =>
      code === "unrecognized_keys"
        ? `is no field here, there are ${Object.keys(shape).join(", ")}`
        : undefined,
  });
}

/** What a body supposes. */
export function whatIfOf(body: z.output<typeof planBodySchema>): WhatIf {
  return {
    shards: body.shards?.map((shard) => ({
      rank: shard.rank === "local" ? LOCAL_RANK : shard.rank,
      memoryBytes: shard.memory_bytes && Math.floor(shard.memory_bytes),
      secondsPerPair: shard.seconds_per_pair,
      rttSeconds: shard.rtt_seconds,
      bytesPerSecond: shard.bytes_per_second,
      draining: shard.draining,
      absent: shard.absent,
    })),
    tokensPerStep: body.tokens_per_step,
    load:
      body.load &&
      new Map(Object.entries(body.load).map(([layer, pairs]) => [Number(layer), pairs])),
    fromNothing: body.from === "nothing",
    minCopies: body.min_copies,
    policy: body.policy,
    moveBytes: body.move_bytes,
    steps: body.steps,
  };
}
