/** Expert shards in the test's own process, and clusters over them. */

import { openCheckpoint, type Checkpoint } from "../../core/model/checkpoint/checkpoint.ts";
import { createLogger, type Logger } from "../../core/platform/log.ts";
import type { ExpertsSetting } from "../../core/expert-formats.ts";
import type { WeightsSetting } from "../../core/handshake.ts";
import { openShardDevice, type ShardDevice } from "../../expert-service/device.ts";
import { startShard, type Shard, type ShardOptions } from "../../expert-service/shard.ts";
import {
  createCluster,
  type Cluster,
  type ClusterOptions,
} from "../../router-service/cluster/cluster.ts";
import { TINY_MODEL } from "../../bench/rig/cluster.ts";
import { placeFirst } from "../../bench/rig/first-placement.ts";

/** A logger that says nothing. */
export const silentLogger = createLogger("test", "silent");

/** How a test's shard differs from the usual one. */
export interface TestShardOptions {
  /** Default: the tiny model. */
  readonly model?: string;
  readonly rank?: number;
  /** Default: a free one. */
  readonly port?: number;
  readonly weights?: WeightsSetting;
  readonly experts?: ExpertsSetting;
  readonly maxDispatches?: number;
  readonly memoryLimit?: number;
  /** Default: cpu. */
  readonly device?: "webgpu" | "cpu";
  readonly runDeadlineMs?: number;
  readonly hostCacheBytes?: number;
  readonly measureSpeed?: boolean;
  readonly startProgress?: ShardOptions["startProgress"];
  /** Default: it says nothing. */
  readonly logger?: Logger;
  /** Awaited before experts are read from the checkpoint. */
  readonly beforeRead?: () => Promise<void>;
  /** Changes the device; default: as it is. */
  readonly wrapDevice?: (device: ShardDevice) => ShardDevice;
}

/** A shard that listens. */
export interface TestShard {
  readonly address: string;
  readonly shard: Shard;
  readonly checkpoint: Checkpoint;
  /** Errors that a process would end with. */
  readonly failures: readonly Error[];
  close(): Promise<void>;
}

/** Starts a shard. */
export async function startTestShard(options: TestShardOptions = {}): Promise<TestShard> {
  const opened = await openCheckpoint(options.model ?? TINY_MODEL);
  const checkpoint: Checkpoint = {
    ...opened,
    readMatrices: async (sources) => {
      await options.beforeRead?.();
      return opened.readMatrices(sources);
    },
  };
  const failures: Error[] = [];
  const device = await openShardDevice(
    { device: options.device ?? "cpu", memoryLimit: options.memoryLimit },
    checkpoint.config,
    silentLogger,
  );
  const shard = await startShard(`127.0.0.1:${options.port ?? 0}`, {
    rank: options.rank ?? 0,
    weights: options.weights ?? "auto",
    experts: options.experts ?? "auto",
    maxDispatches: options.maxDispatches ?? 256,
    checkpoint,
    device: options.wrapDevice?.(device) ?? device,
    logger: options.logger ?? silentLogger,
    runDeadlineMs: options.runDeadlineMs,
    hostCacheBytes: options.hostCacheBytes,
    measureSpeed: options.measureSpeed,
    startProgress: options.startProgress,
    onFailure: (error) => failures.push(error),
  });
  return {
    address: `127.0.0.1:${shard.port}`,
    shard,
    checkpoint,
    failures,
    close: async () => {
      await shard.close();
      device.close();
      await checkpoint.close();
    },
  };
}

/** How a test's cluster differs from the usual one. */
export interface TestClusterOptions extends Partial<ClusterOptions> {
  readonly model?: string;
  /** Work by the first placement once all shards are there; default: yes. */
  readonly plansFirst?: boolean;
}

/** Connects to shards as a router does; weights f32, wire f32, the tiny model unless told otherwise. */
export async function connectTestCluster(
  shards: readonly string[],
  { model = TINY_MODEL, plansFirst = true, ...others }: TestClusterOptions = {},
): Promise<Cluster> {
  const checkpoint = await openCheckpoint(model);
  const { config, modelHash, overlay, storedExperts } = checkpoint;
  await checkpoint.close();
  const options: ClusterOptions = {
    shards,
    routerId: "test",
    modelHash,
    config,
    weights: "f32",
    experts: "auto",
    storedExperts,
    overlay,
    shaderF16: false,
    wire: "f32",
    dispatchTimeoutMs: 2000,
    copyWaitMs: 10_000,
    logger: silentLogger,
    ...others,
  };
  const cluster = createCluster(options);
  if (plansFirst) placeFirst(cluster, options);
  return cluster;
}
