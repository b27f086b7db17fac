/** What the router's own device has for routed experts: `--router-memory-limit` less what all else takes, and `--local-experts`. */

import type { WeightsDtype } from "../core/expert-device.ts";
import type { FormatOf } from "../core/expert-format.ts";
import {
  bytesByExpert,
  commonFormat,
  expertsSetting,
  formatsOf,
  largestLayerBytes,
} from "../core/expert-formats.ts";
import { expertBufferBytes, expertWorkBytes, steadyMemory } from "../core/expert-memory.ts";
import { decideWeights } from "../core/handshake.ts";
import type { Checkpoint } from "../core/model/checkpoint/checkpoint.ts";
import type { ModelConfig } from "../core/model/config.ts";
import type { Logger } from "../core/platform/log.ts";
import type { RouterConfig } from "./config.ts";
import { type RouterMemory, routerMemory } from "./engine/router-memory.ts";
import { LimitError, type RunnerLimits } from "./engine/runner-limits.ts";

/** What it is computed from. */
export interface LocalMemorySettings {
  readonly checkpoint: Pick<Checkpoint, "config" | "overlay" | "storedExperts">;
  readonly settings: Pick<
    RouterConfig,
    | "routerMemoryLimit"
    | "localExperts"
    | "weights"
    | "expertsBits"
    | "expertsGroup"
    | "microBatches"
  >;
  readonly limits: RunnerLimits;
  /** Absent: the CPU. */
  readonly gpu: { readonly shaderF16: boolean } | undefined;
  /** Experts are on shards; else the router holds them all. */
  readonly isRemote: boolean;
  readonly logger: Pick<Logger, "info">;
}

/** Memory of the router's own device for routed experts beside those of the shards. */
export interface LocalMemory {
  /** There is, or may come to be, some. */
  readonly isOffered: boolean;
  /** Bytes that routed experts may take now. */
  bytes(): number;
  /**
   * The dtype of the router's weights is decided: until then the wider one was counted. Throws LimitError where the memory
   * limit is below what the router takes with it.
   */
  decided(weights: WeightsDtype): void;
}

/** What routed experts may take of `bytes` of a device, with their buffers beside them. */
export function expertRoom(
  bytes: number,
  config: ModelConfig,
  formatOf: FormatOf,
  holdsTwice: boolean,
): number {
  const room = Math.max(0, Math.floor(bytes - expertBufferBytes(config)));
  return holdsTwice ? steadyMemory(room, largestLayerBytes(config, formatOf)) : room;
}

/**
 * Memory for routed experts, as the settings say; logs what a memory limit leaves.
 * Throws LimitError where it is below what the router takes in any case.
 */
export function createLocalMemory(options: LocalMemorySettings): LocalMemory {
  const { settings, gpu, isRemote, logger } = options;
  const { routerMemoryLimit, localExperts } = settings;
  if (routerMemoryLimit === undefined) {
    const bytes = localExperts ?? 0;
    return { isOffered: bytes > 0, bytes: () => bytes, decided: () => {} };
  }
  const of = (weights: WeightsDtype): number => {
    const left = routerMemoryLimit - takenBytes(options, weights).total;
    const room = isRemote ? roomBeside(options, left, weights) : 0;
    return Math.min(room, localExperts ?? room);
  };
  const say = (weights: WeightsDtype) => {
    const taken = takenBytes(options, weights).total;
    const left = isRemote ? { leftForExperts: of(weights) } : {};
    logger.info(
      { routerMemoryLimit, weights, taken, ...left },
      "memory of the router's own device",
    );
  };
  const isAuto = settings.weights === "auto" && isRemote && gpu !== undefined;
  const vote = { weights: settings.weights, shaderF16: gpu?.shaderF16 ?? false };
  const narrowest = decideWeights([vote]);
  checkLimit(options, routerMemoryLimit, narrowest);
  let counted = isAuto ? "f32" : narrowest;
  let bytes = of(counted);
  let isSaid = counted === narrowest;
  if (isSaid) say(counted);
  return {
    isOffered: isRemote && localExperts !== 0,
    bytes: () => bytes,
    decided: (weights) => {
      checkLimit(options, routerMemoryLimit, weights);
      if (!isSaid || weights !== counted) say(weights);
      isSaid = true;
      counted = weights;
      bytes = of(weights);
    },
  };
}

/** Plain loops take weights in f32, whatever they were rounded to. */
function heldAs({ gpu }: LocalMemorySettings, weights: WeightsDtype): WeightsDtype {
  return gpu === undefined ? "f32" : weights;
}

function formatsWith({ checkpoint, settings }: LocalMemorySettings, weights: WeightsDtype) {
  const { overlay, storedExperts } = checkpoint;
  return formatsOf(overlay, commonFormat(expertsSetting(settings), weights, storedExperts));
}

/** What experts may take of what all else leaves. On the CPU they are not copied when they move. */
function roomBeside(options: LocalMemorySettings, left: number, weights: WeightsDtype): number {
  const { checkpoint, gpu } = options;
  return expertRoom(left, checkpoint.config, formatsWith(options, weights), gpu !== undefined);
}

/** What the router takes beside routed experts of a cluster; without shards, with all experts. */
function takenBytes(
  options: LocalMemorySettings,
  weights: WeightsDtype,
): RouterMemory & { readonly experts: number } {
  const { checkpoint, settings, limits, isRemote } = options;
  const { config } = checkpoint;
  const inTurns = isRemote && settings.microBatches !== "1";
  const dtype = heldAs(options, weights);
  const memory = routerMemory(config, dtype, limits, inTurns, Number.POSITIVE_INFINITY);
  if (isRemote) return { ...memory, experts: 0 };
  const held = bytesByExpert(config, formatsWith(options, weights));
  const experts =
    held.reduce((sum, bytes) => sum + bytes, 0) +
    expertWorkBytes(config, limits.maxTokens * config.numExpertsPerToken);
  return { ...memory, experts, total: memory.total + experts };
}

function checkLimit(options: LocalMemorySettings, limit: number, weights: WeightsDtype): void {
  const { kvCache, buffers, experts, total } = takenBytes(options, weights);
  if (total <= limit) return;
  const dense = total - kvCache - buffers - experts;
  const parts = [
    `${dense} bytes of weights in ${heldAs(options, weights)}`,
    `${kvCache} of KV cache, ${options.limits.numBlocks} blocks`,
    `${buffers} of step buffers`,
    ...(experts > 0 ? [`${experts} of experts`] : []),
  ];
  throw new LimitError(
    `--router-memory-limit ${limit}: the router takes ${total} bytes, ${parts.join(", ")}`,
  );
}
