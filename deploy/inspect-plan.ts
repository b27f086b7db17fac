/** What each process of a cluster will take, and how many shards would do; pure. */

import type { WeightsDtype } from "../core/expert-device.ts";
import type { FormatOf } from "../core/expert-format.ts";
import { bytesByExpert, largestLayerBytes } from "../core/expert-formats.ts";
import { expertBufferBytes, expertWorkBytes, moveReserve } from "../core/expert-memory.ts";
import { largestPart } from "../core/gpu/expert-banks.ts";
import { type ModelConfig, moeLayers } from "../core/model/config.ts";
import { expertsPerShard } from "../router-service/cluster/planning/contiguous-runs.ts";
import {
  type LargeBuffer,
  type RouterMemory,
  routerMemory,
} from "../router-service/engine/router-memory.ts";
import type { RunnerLimits } from "../router-service/engine/runner-limits.ts";
import { expertRoom } from "../router-service/local-memory.ts";

/** What the plan is made from. */
export interface InspectInput {
  readonly config: ModelConfig;
  /** Dtype of the router's weights. */
  readonly weights: WeightsDtype;
  readonly formatOf: FormatOf;
  readonly limits: RunnerLimits;
  /** 0: one process that holds all experts itself. */
  readonly shards: number;
  /** Memory that each process has, bytes. */
  readonly memoryBytes: number;
  /** Largest binding of the adapter that each process has, bytes; Infinity on the CPU. */
  readonly bindingBytes: number;
  /** That memory was named: processes are told of it by --memory-limit and --router-memory-limit. */
  readonly isLimit: boolean;
  /** Moves take a layer's slots twice within it, as on a GPU with a memory limit. */
  readonly holdsTwice: boolean;
}

/** Experts in a process. */
export interface HeldExperts {
  /** Experts of every MoE layer. */
  readonly expertsPerLayer: number;
  /** Bytes of their weights, scales and biases: what a shard reports as resident. */
  readonly residentBytes: number;
  /** Bytes of the buffers that they work in. */
  readonly buffers: number;
}

/** A process and its memory. */
export interface PlannedProcess {
  readonly total: number;
  /** Buffers that no binding of the adapter takes. */
  readonly tooLarge: readonly LargeBuffer[];
  /** `total` is within the memory that a process has, and every buffer within a binding. */
  readonly fits: boolean;
}

/** The router; with no shards it holds every expert. */
export interface PlannedRouter extends PlannedProcess {
  readonly memory: RouterMemory;
  readonly experts?: HeldExperts;
  /** With shards: what a memory limit leaves for routed experts beside theirs; undefined where it does not fit. */
  readonly leftForExperts?: number;
}

/** One shard. */
export interface PlannedShard extends PlannedProcess, HeldExperts {
  readonly rank: number;
  /** Bytes that stay free for moves. */
  readonly reserve: number;
}

/** What a cluster takes. */
export interface InspectPlan {
  readonly router: PlannedRouter;
  readonly shards: readonly PlannedShard[];
  /** The fewest shards whose experts fit; undefined where one expert of every layer is too much for one. */
  readonly shardsNeeded: number | undefined;
  /** Parts of one expert that no binding takes, one for each format. */
  readonly expertsTooLarge: readonly LargeBuffer[];
}

/** Plans a cluster of a model. */
export function planInspection(input: InspectInput): InspectPlan {
  const { config, limits, shards, bindingBytes } = input;
  const bytesOf = bytesByExpert(config, input.formatOf);
  const memory = routerMemory(config, input.weights, limits, shards > 0, bindingBytes);
  const experts: HeldExperts | undefined =
    shards > 0
      ? undefined
      : {
          expertsPerLayer: config.numExperts,
          residentBytes: sum(bytesOf),
          buffers: expertWorkBytes(config, limits.maxTokens * config.numExpertsPerToken),
        };
  const expertsTooLarge = largeExperts(input);
  const tooLarge = [...memory.tooLarge, ...(experts ? expertsTooLarge : [])];
  const total = memory.total + (experts ? experts.residentBytes + experts.buffers : 0);
  const fits = isFitting(input, total, tooLarge);
  const leftForExperts =
    shards > 0 && fits && input.isLimit
      ? expertRoom(input.memoryBytes - total, config, input.formatOf, input.holdsTwice)
      : undefined;
  return {
    router: { memory, experts, total, tooLarge, fits, leftForExperts },
    shards: shards === 0 ? [] : planShards(input, bytesOf, shards, expertsTooLarge),
    shardsNeeded: shardsNeeded(input, bytesOf, expertsTooLarge),
    expertsTooLarge,
  };
}

/** Whether a process with these bytes and buffers fits. */
function isFitting(
  { memoryBytes }: InspectInput,
  total: number,
  tooLarge: readonly LargeBuffer[],
): boolean {
  return total <= memoryBytes && tooLarge.length === 0;
}

/** Experts that no bank can hold even one of, one for each format: banks are divided between experts only. */
function largeExperts({ config, formatOf, bindingBytes }: InspectInput): LargeBuffer[] {
  const formats = new Set(
    moeLayers(config).flatMap((layer) =>
      Array.from({ length: config.numExperts }, (_, expert) => formatOf(layer, expert)),
    ),
  );
  return [...formats]
    .map((format) => ({
      label: `one expert's gate and up in ${format}`,
      bytes: largestPart(config, format),
    }))
    .filter(({ bytes }) => bytes > bindingBytes);
}

/** Even runs of experts, as the router's first placement cuts them where memory is no matter. */
function planShards(
  input: InspectInput,
  bytesOf: readonly number[],
  shards: number,
  tooLarge: readonly LargeBuffer[],
): PlannedShard[] {
  const { config } = input;
  const shares = expertsPerShard({
    layers: [0],
    bytesByExpert: bytesOf.map(() => 1),
    memoryBytes: Array.from({ length: shards }, () => config.numExperts),
  });
  const buffers = expertBufferBytes(config);
  const largestLayer = input.holdsTwice ? largestLayerBytes(config, input.formatOf) : 0;
  let next = 0;
  return shares.map((expertsPerLayer, rank) => {
    const residentBytes = sum(bytesOf.slice(next, (next += expertsPerLayer)));
    const reserve = moveReserve(residentBytes, largestLayer);
    const total = residentBytes + buffers + reserve;
    return {
      rank,
      expertsPerLayer,
      residentBytes,
      buffers,
      reserve,
      total,
      tooLarge,
      fits: isFitting(input, total, tooLarge),
    };
  });
}

function shardsNeeded(
  input: InspectInput,
  bytesOf: readonly number[],
  tooLarge: readonly LargeBuffer[],
): number | undefined {
  for (let shards = 1; shards <= input.config.numExperts; shards++) {
    if (planShards(input, bytesOf, shards, tooLarge).every(({ fits }) => fits)) return shards;
  }
  return undefined;
}

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0);
}
