/** Puts a shard together: its server, batcher and residency over one device and one checkpoint. */

import { Server } from "@grpc/grpc-js";
import { HealthImplementation } from "grpc-health-check";

import { type ExpertFormat, formatsAmong } from "../core/expert-format.ts";
import { commonFormat, type ExpertsSetting, formatsOf } from "../core/expert-formats.ts";
import type { WeightsSetting } from "../core/handshake.ts";
import type { Checkpoint } from "../core/model/checkpoint.ts";
import { moeLayers } from "../core/model/config.ts";
import { readExpert } from "../core/model/weights.ts";
import { bindServer, serverOptions, stopServer } from "../core/platform/grpc.ts";
import type { Logger } from "../core/platform/log.ts";
import { Batcher } from "./batcher.ts";
import type { ShardDevice } from "./device.ts";
import { Residency } from "./residency.ts";
import { addExpertService } from "./server.ts";

/** What a shard is made of. */
export interface ShardOptions {
  readonly rank: number;
  readonly weights: WeightsSetting;
  readonly experts: ExpertsSetting;
  readonly maxDispatches: number;
  readonly checkpoint: Checkpoint;
  readonly device: ShardDevice;
  readonly logger: Logger;
  /** A placement could not be loaded, or the device hangs: the shard can not go on. */
  readonly onFailure: (error: Error) => void;
  /** Longest run of the device. */
  readonly runDeadlineMs?: number;
  /** Called after each expert that was loaded. */
  readonly onProgress?: (loaded: number, total: number) => void;
}

/** A shard that listens. */
export interface Shard {
  readonly port: number;
  /** Ends all streams, stops the server and frees the device's experts; device and checkpoint stay the caller's. */
  close(): Promise<void>;
}

/** Streams are ended before the server stops, so that little remains to wait for, milliseconds. */
const STOP_GRACE_MS = 500;

/** No router waits nearly as long for a dispatch, milliseconds. */
const RUN_DEADLINE_MS = 60_000;

/** The formats that the cluster will most likely decide on, commonest first; any other is checked before it computes. */
function likelyFormats({ weights, experts, checkpoint, device }: ShardOptions): ExpertFormat[] {
  const { config, overlay, storedExperts } = checkpoint;
  const likely = weights === "auto" ? (device.shaderF16 ? "f16" : "f32") : weights;
  const formatOf = formatsOf(overlay, commonFormat(experts, likely, storedExperts));
  return formatsAmong(formatOf, moeLayers(config), config.numExperts);
}

/**
 * Starts a shard without experts that listens on `address`, once its device's kernels conform.
 * Rejects where they do not (ConformanceError), or the address is taken.
 */
export async function startShard(address: string, options: ShardOptions): Promise<Shard> {
  const { rank, weights, experts, checkpoint, device, logger } = options;
  await device.check(likelyFormats(options));
  const now = () => performance.now();
  const batcher = new Batcher({
    hiddenSize: checkpoint.config.hiddenSize,
    maxDispatches: options.maxDispatches,
    now,
    onStuck: options.onFailure,
    runDeadlineMs: options.runDeadlineMs ?? RUN_DEADLINE_MS,
    hold: (epoch, layer) => residency.hold(epoch, layer),
  });
  const residency = new Residency({
    model: checkpoint.config,
    weights,
    experts,
    device,
    source: {
      readExpert: (layer, expertId) => readExpert(checkpoint, layer, expertId),
      bytesRead: () => checkpoint.bytesRead(),
    },
    idle: () => batcher.idle(),
    onProgress: options.onProgress,
  });
  const server = new Server(serverOptions);
  const endStreams = addExpertService(server, {
    rank,
    model: checkpoint.config,
    modelHash: checkpoint.modelHash,
    weights,
    experts,
    device,
    residency,
    batcher,
    logger,
    now,
    onFailure: options.onFailure,
  });
  const health = new HealthImplementation({
    "": "SERVING",
    "switchyard.v1.ExpertService": "SERVING",
  });
  health.addToServer(server);
  const port = await bindServer(server, address);
  return {
    port,
    close: async () => {
      health.setStatus("", "NOT_SERVING");
      health.setStatus("switchyard.v1.ExpertService", "NOT_SERVING");
      endStreams();
      await stopServer(server, STOP_GRACE_MS);
      await batcher.idle();
      residency.close();
    },
  };
}
