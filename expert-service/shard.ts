/** Puts a shard together: its server, batcher and residency over one device and one checkpoint. */

import { randomUUID } from "node:crypto";

import { Server } from "@grpc/grpc-js";
import { HealthImplementation } from "grpc-health-check";

import { type ExpertFormat, formatsAmong } from "../core/expert-format.ts";
import {
  commonFormat,
  type ExpertsSetting,
  formatsOf,
  largestLayerBytes,
} from "../core/expert-formats.ts";
import { steadyMemory } from "../core/expert-memory.ts";
import { inTime } from "../core/gpu/deadline.ts";
import type { ShardRegistration } from "../core/membership.ts";
import type { WeightsSetting } from "../core/handshake.ts";
import type { Checkpoint } from "../core/model/checkpoint/checkpoint.ts";
import { moeLayers } from "../core/model/config.ts";
import { readExpert } from "../core/model/checkpoint/weights.ts";
import { bindServer, serverOptions, stopServer } from "../core/platform/grpc.ts";
import type { Logger } from "../core/platform/log.ts";
import { expertBytes } from "../core/weights.ts";
import { Batcher } from "./batcher.ts";
import type { ShardDevice } from "./device.ts";
import { ExpertSources } from "./expert-sources.ts";
import { HostCache } from "./host-cache.ts";
import { Leaving, type LeavingEnd } from "./leaving.ts";
import { createLoader, type LoaderOptions } from "./loader.ts";
import { measureSpeed } from "./measure-speed.ts";
import { PeerExperts } from "./peer-experts.ts";
import { Residency } from "./residency.ts";
import { addExpertService, type ShardStanding } from "./server.ts";

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
  /** Host memory for experts that left the device, bytes; 0 unless told otherwise. */
  readonly hostCacheBytes?: number;
  /** Measure how fast the device computes; default: no, 0 is said of it. */
  readonly measureSpeed?: boolean;
  /** Where other shards reach this one, once it is known. */
  readonly ownAddress?: () => string | undefined;
  /** What the shard says of itself has changed. */
  readonly onChange?: () => void;
  /** Shows how far a load of so many experts is. */
  readonly startProgress?: LoaderOptions["startProgress"];
}

/** A shard that listens. */
export interface Shard {
  readonly port: number;
  /** What it would register as at this address. */
  registration(address: string): ShardRegistration;
  /** Marks the shard as leaving. Settles when it may go: released, without routers, or `timeoutMs` over. */
  drain(timeoutMs: number): Promise<LeavingEnd>;
  /** Experts in device memory, and the bytes that they take. */
  held(): { readonly experts: number; readonly residentBytes: number };
  /** Ends all streams, stops the server and frees the device's experts; device and checkpoint stay the caller's. */
  close(): Promise<void>;
}

/** Streams are ended before the server stops, so that little remains to wait for, milliseconds. */
const STOP_GRACE_MS = 500;

/** No router waits nearly as long for a dispatch, milliseconds. */
const RUN_DEADLINE_MS = 60_000;

/** The formats that the cluster will most likely decide on, commonest first; any other is checked before it computes. */
function likelyFormats(options: ShardOptions): ExpertFormat[] {
  return formatsIn(options.checkpoint, likelyCommon(options));
}

function likelyCommon({ weights, experts, checkpoint, device }: ShardOptions): ExpertFormat {
  const likely = weights === "auto" ? (device.shaderF16 ? "f16" : "f32") : weights;
  return commonFormat(experts, likely, checkpoint.storedExperts);
}

/** The formats of a cluster's experts, commonest first, where `common` is that of those that the overlay says nothing of. */
function formatsIn({ config, overlay }: Checkpoint, common: ExpertFormat): ExpertFormat[] {
  return formatsAmong(formatsOf(overlay, common), moeLayers(config), config.numExperts);
}

/** The device as routers are told of it: a move's second copy of a layer is within its limit too, in the likely formats. */
function withinLimit(options: ShardOptions): ShardDevice {
  const { checkpoint, device } = options;
  if (!device.holdsTwice) return device;
  const { config, overlay } = checkpoint;
  const formatOf = formatsOf(overlay, likelyCommon(options));
  const memoryBytes = steadyMemory(device.memoryBytes, largestLayerBytes(config, formatOf));
  return { ...device, memoryBytes };
}

/** Says so where not one expert has room: the shard is there, and nothing will ever be placed on it. */
function warnOfTooLittle(options: ShardOptions, memoryBytes: number): void {
  const { checkpoint, logger } = options;
  const sizes = likelyFormats(options).map((format) => expertBytes(checkpoint.config, format));
  const leastBytes = Math.min(...sizes);
  if (memoryBytes >= leastBytes) return;
  logger.warn({ memoryBytes, expertBytes: leastBytes }, "the shard's memory holds not one expert");
}

/** Checks the device's kernels and, where that is asked for, measures them; the device that was made for it is kept, unless it fails. */
async function prepareDevice(options: ShardOptions, now: () => number) {
  const { checkpoint, device } = options;
  const formats = likelyFormats(options);
  await device.check(formats);
  if (options.measureSpeed !== true) return { made: undefined, speed: undefined };
  const made = { device: await device.create(formats), formats };
  const { config } = checkpoint;
  const measuring = measureSpeed(made.device, {
    sizes: config,
    formats,
    numExperts: config.numExperts,
    topK: config.numExpertsPerToken,
    memoryBytes: device.memoryBytes,
    now,
  });
  try {
    return { made, speed: await inTime("the shard's first runs", measuring) };
  } catch (error) {
    made.device.close();
    throw error;
  }
}

/**
 * Starts a shard without experts that listens on `address`, once its device's kernels conform.
 * Rejects where they do not (ConformanceError), or the address is taken.
 */
export async function startShard(address: string, options: ShardOptions): Promise<Shard> {
  const { rank, weights, experts, checkpoint, logger } = options;
  const device = withinLimit(options);
  warnOfTooLittle(options, device.memoryBytes);
  const now = () => performance.now();
  const { made, speed } = await prepareDevice(options, now);
  const pairsPerSecond = speed?.pairsPerSecond ?? 0;
  const batcher = new Batcher({
    hiddenSize: checkpoint.config.hiddenSize,
    maxDispatches: options.maxDispatches,
    now,
    onStuck: options.onFailure,
    runDeadlineMs: options.runDeadlineMs ?? RUN_DEADLINE_MS,
    hold: (epoch, layer) => residency.hold(epoch, layer),
  });
  const cache = new HostCache(checkpoint.config, options.hostCacheBytes ?? 0);
  const sources = new ExpertSources({
    sizes: checkpoint.config,
    readExpert: (layer, expertId) => readExpert(checkpoint, layer, expertId),
    cache,
    peers: new PeerExperts({ modelHash: checkpoint.modelHash, sizes: checkpoint.config }),
    ownAddress: options.ownAddress ?? (() => undefined),
    logger,
    now,
  });
  const residency = new Residency({
    model: checkpoint.config,
    weights,
    experts,
    device,
    made,
    load: createLoader({
      sizes: checkpoint.config,
      sources,
      turn: () => batcher.between(() => {}),
      giveWay: (startedAt, workMs, signal) => batcher.giveWay(startedAt, workMs, signal),
      startProgress: options.startProgress,
    }),
    bytesRead: () => checkpoint.bytesRead(),
    formatsBeside: (common) => formatsIn(checkpoint, common),
    between: (task) => batcher.between(task),
    keep:
      options.hostCacheBytes === undefined || options.hostCacheBytes === 0
        ? undefined
        : (layer, expert, packed) => cache.put(layer, expert, packed),
    onChange: () => changed(),
    logger,
  });
  const incarnation = randomUUID();
  const held = () => ({
    experts: residency.numExperts(),
    residentBytes: residency.residentBytes(),
  });
  const leaving = new Leaving({
    isNeeded: () => residency.isNeeded(),
    numRouters: () => service.numRouters(),
    held,
    onChange: () => changed(),
    logger,
  });
  const shardStatus = (): ShardStanding => ({
    draining: leaving.draining,
    released: leaving.released,
    residentBytes: residency.residentBytes(),
    memoryBytes: device.memoryBytes,
    waiting: batcher.waiting,
    epochs: residency.epochs(),
  });
  const changed = () => {
    leaving.look();
    service.statusChanged();
    options.onChange?.();
  };
  const server = new Server(serverOptions);
  const service = addExpertService(server, {
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
    incarnation,
    pairsPerSecond,
    formatSpeeds: speed?.formats ?? [],
    status: shardStatus,
    onDrain: (wanted) => leaving.set(wanted),
    onLeavingOutlook: (unplaceable) => leaving.tell(unplaceable),
    read: (layer, expert, format) => {
      const kept = cache.look({ layer, expert, format });
      return kept === undefined ? residency.read(layer, expert, format) : Promise.resolve(kept);
    },
    onFailure: options.onFailure,
  });
  const health = new HealthImplementation({
    "": "SERVING",
    "switchyard.v1.ExpertService": "SERVING",
  });
  health.addToServer(server);
  const port = await bindServer(server, address).catch(async (error: unknown) => {
    service.close();
    await residency.close();
    throw error;
  });
  const { adapter, memoryBytes } = device;
  return {
    port,
    registration: (address) => ({
      kind: "shard",
      rank,
      address,
      adapter,
      memoryBytes,
      residentBytes: residency.residentBytes(),
      pairsPerSecond,
      tolerance: device.tolerance(),
      weights,
      experts,
      incarnation,
      draining: leaving.draining,
      released: leaving.released,
      residentExperts: residency.numExperts(),
      epoch: residency.epochs().at(-1) ?? 0,
    }),
    drain: (timeoutMs) => leaving.wait(timeoutMs),
    held,
    close: async () => {
      health.setStatus("", "NOT_SERVING");
      health.setStatus("switchyard.v1.ExpertService", "NOT_SERVING");
      service.close();
      await stopServer(server, STOP_GRACE_MS);
      await batcher.idle();
      await residency.close();
    },
  };
}
