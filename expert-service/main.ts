/** One expert shard as a process: builds and wires everything. */

import { expertsSetting } from "../core/expert-formats.ts";
import { openCheckpoint } from "../core/model/checkpoint.ts";
import { loadConfig } from "../core/platform/config.ts";
import { announceReady, exitWithParent, startLifecycle } from "../core/platform/lifecycle.ts";
import { createLogger } from "../core/platform/log.ts";
import { startProgress, type Progress } from "../core/platform/progress.ts";
import { hostPort } from "../core/platform/service-options.ts";
import { startTelemetry } from "../core/platform/telemetry.ts";
import { expertAbout, expertConfigSchema } from "./config.ts";
import { openShardDevice } from "./device.ts";
import { startShard } from "./shard.ts";

const config = loadConfig(expertConfigSchema, expertAbout);
const logger = createLogger(`shard ${config.rank}`, config.logLevel);
const lifecycle = startLifecycle(logger);
exitWithParent(lifecycle);

const telemetry = await startTelemetry("switchyard-shard", logger);
lifecycle.onStop("telemetry", () => telemetry.shutdown());

const checkpoint = await openCheckpoint(config.model);
lifecycle.onStop("checkpoint", () => checkpoint.close());

const device = await openShardDevice(config, checkpoint.config, logger);
lifecycle.onStop("device", () => device.close());
void device.lost.then((reason) => lifecycle.stop(`the device is lost: ${reason}`, 1));

let progress: Progress | undefined;
const shard = await startShard(hostPort(config.host, config.port), {
  rank: config.rank,
  weights: config.weights,
  experts: expertsSetting(config),
  maxDispatches: config.maxDispatches,
  checkpoint,
  device,
  logger,
  onFailure: (error) => lifecycle.stop(error.message, 1),
  onProgress: (loaded, total) => {
    progress ??= startProgress(`shard ${config.rank} experts`, total, logger);
    progress.update(loaded);
    if (loaded < total) return;
    progress.finish();
    progress = undefined;
  },
});
lifecycle.onStop("server", () => shard.close());

logger.info(
  {
    port: shard.port,
    adapter: device.adapter,
    memoryBytes: device.memoryBytes,
    tolerance: device.tolerance(),
    modelHash: checkpoint.modelHash,
  },
  "listening",
);
announceReady({ port: shard.port });
