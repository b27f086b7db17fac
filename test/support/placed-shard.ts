/** A shard of the tiny model's experts, and what routers tell it. */

import assert from "node:assert/strict";

import type { Checkpoint } from "../../core/model/checkpoint/checkpoint.ts";
import type { ShardPlacement } from "../../proto/gen/switchyard/v1/cluster.ts";
import {
  dispatchOf,
  helloFor,
  openShardConnection,
  placementOf,
  type ShardConnection,
} from "../../bench/rig/shard-connection.ts";
import { startTestShard, type TestShard } from "./shards.ts";

/** A shard for one test, which must not fail as a process. */
export async function withShard(
  body: (shard: TestShard) => Promise<void>,
  options: Parameters<typeof startTestShard>[0] = {},
): Promise<void> {
  const shard = await startTestShard(options);
  try {
    await body(shard);
    assert.deepEqual(shard.failures, []);
  } finally {
    await shard.close();
  }
}

/** A placement of an epoch beside epoch 1. */
export const later = (
  checkpoint: Checkpoint,
  epoch: number,
  experts: readonly number[],
  oldestLiveEpoch = 1,
): ShardPlacement => placementOf(checkpoint, experts, { epoch, oldestLiveEpoch });

/** Sends a placement and waits until it is resident. */
export async function place(connection: ShardConnection, value: ShardPlacement) {
  connection.send({ $case: "placement", value });
  return connection.next("placementAck");
}

/** The sums over a row through these experts of a layer. */
export async function sumsOf(
  connection: ShardConnection,
  epoch: number,
  experts: readonly number[],
  layer = 0,
) {
  connection.send({ $case: "dispatch", value: dispatchOf(experts, { epoch, layer }) });
  return (await connection.next("partialSum")).sums;
}

/** Why such a row is not answered. */
export async function refusedCode(
  connection: ShardConnection,
  epoch: number,
  experts: readonly number[],
) {
  connection.send({ $case: "dispatch", value: dispatchOf(experts, { epoch }) });
  return (await connection.next("error")).code;
}

/** Opens a stream and says hello. */
export async function greeted(shard: TestShard): Promise<ShardConnection> {
  const connection = openShardConnection(shard.address);
  connection.send({ $case: "hello", value: helloFor(shard.checkpoint) });
  await connection.next("hello");
  return connection;
}
