/** One expert shard as a process: builds and wires everything. */

import { expertsSetting } from "../core/expert-formats.ts";
import { type Heartbeat, startHeartbeat } from "../core/heartbeat.ts";
import { openCheckpoint } from "../core/model/checkpoint/checkpoint.ts";
import { announceReady, exitWithParent, startLifecycle } from "../core/platform/lifecycle.ts";
import { createLogger } from "../core/platform/log.ts";
import { startProgress } from "../core/platform/progress.ts";
import { connectRedis } from "../core/platform/redis.ts";
import { hostPort } from "../core/platform/service-options.ts";
import { startTelemetry } from "../core/platform/telemetry.ts";
import { advertisedAddress } from "./advertise.ts";
import type { ExpertConfig } from "./config.ts";
import { openShardDevice } from "./device.ts";
import { startShard } from "./shard.ts";

/**
 * Runs a shard until its process is told to stop, or ends it where something fails on its way; resolves when the shard serves.
 * Rejects as opening the checkpoint and the device does.
 * @param openDevice opens what the shard computes on
 * @param openModel opens what it reads experts from
 */
export async function runShardProcess(
  config: ExpertConfig,
  openDevice: typeof openShardDevice = openShardDevice,
  openModel: typeof openCheckpoint = openCheckpoint,
): Promise<void> {
  const logger = createLogger(`shard ${config.rank}`, config.logLevel);
  const lifecycle = startLifecycle(logger);
  exitWithParent(lifecycle);

  const telemetry = await startTelemetry("switchyard-shard", logger);
  lifecycle.onStop("telemetry", () => telemetry.shutdown());

  const checkpoint = await openModel(config.model);
  lifecycle.onStop("checkpoint", () => checkpoint.close());

  const device = await openDevice(config, checkpoint.config, logger);
  lifecycle.onStop("device", () => device.close());
  void device.lost.then((reason) => lifecycle.stop(`the device is lost: ${reason}`, 1));

  let address: string | undefined;
  let heartbeat: Heartbeat | undefined;
  const shard = await startShard(hostPort(config.host, config.port), {
    rank: config.rank,
    weights: config.weights,
    experts: expertsSetting(config),
    maxDispatches: config.maxDispatches,
    checkpoint,
    device,
    logger,
    hostCacheBytes: config.hostCache,
    measureSpeed: true,
    ownAddress: () => address,
    onChange: () => heartbeat?.changed(),
    onFailure: (error) => lifecycle.stop(error.message, 1),
    startProgress: (total) => startProgress(`shard ${config.rank} experts`, total, logger),
  });
  lifecycle.onStop("server", () => shard.close());
  lifecycle.beforeStop(async () => {
    const { inOrder, reason } = await shard.drain(config.drainTimeout * 1000);
    if (inOrder) logger.info({ reason }, "drained");
    else logger.warn({ reason, ...shard.held() }, "leaves with experts that routers still need");
  });

  const own = advertisedAddress(config.advertise, config.host, shard.port);
  address = own;
  if (config.redisUrl !== undefined) {
    const redis = connectRedis(config.redisUrl, logger);
    lifecycle.onStop("redis", () => redis.close());
    heartbeat = startHeartbeat({
      redis,
      modelHash: checkpoint.modelHash,
      member: () => shard.registration(own),
      onConflict: (error) => lifecycle.stop(error.message, 1),
      onError: (error) => logger.warn({ err: error }, "the shard can not register"),
    });
    lifecycle.onStop("registration", () => heartbeat?.close());
  }

  logger.info(
    {
      port: shard.port,
      address,
      adapter: device.adapter,
      memoryBytes: device.memoryBytes,
      tolerance: device.tolerance(),
      pairsPerSecond: Math.round(shard.registration(own).pairsPerSecond),
      modelHash: checkpoint.modelHash,
    },
    "listening",
  );
  announceReady({ port: shard.port });
}
