/** What each process of a cluster will take, and how many shards would do; pure. */

import type { WeightsDtype } from "../core/expert-device.ts";
import type { FormatOf } from "../core/expert-format.ts";
import { bytesByExpert } from "../core/expert-formats.ts";
import type { ModelConfig } from "../core/model/config.ts";
import { expertWorkBytes, shardBufferBytes } from "../expert-service/shard-memory.ts";
import { expertsPerShard } from "../router-service/cluster/first-placement.ts";
import { type RouterMemory, routerMemory } from "../router-service/engine/router-memory.ts";
import type { RunnerLimits } from "../router-service/engine/runner-limits.ts";

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
  /** `total` is within the memory that a process has. */
  readonly fits: boolean;
}

/** The router; with no shards it holds every expert. */
export interface PlannedRouter extends PlannedProcess {
  readonly memory: RouterMemory;
  readonly experts?: HeldExperts;
}

/** One shard. */
export interface PlannedShard extends PlannedProcess, HeldExperts {
  readonly rank: number;
}

/** What a cluster takes. */
export interface InspectPlan {
  readonly router: PlannedRouter;
  readonly shards: readonly PlannedShard[];
  /** The fewest shards whose experts fit; undefined where one expert of every layer is too much for one. */
  readonly shardsNeeded: number | undefined;
}

/** Plans a cluster of a model. */
export function planInspection(input: InspectInput): InspectPlan {
  const { config, limits, shards, memoryBytes } = input;
  const bytesOf = bytesByExpert(config, input.formatOf);
  const memory = routerMemory(config, input.weights, limits, shards > 0);
  const experts: HeldExperts | undefined =
    shards > 0
      ? undefined
      : {
          expertsPerLayer: config.numExperts,
          residentBytes: sum(bytesOf),
          buffers: expertWorkBytes(config, limits.maxTokens * config.numExpertsPerToken),
        };
  const total = memory.total + (experts ? experts.residentBytes + experts.buffers : 0);
  return {
    router: { memory, experts, total, fits: total <= memoryBytes },
    shards: shards === 0 ? [] : planShards(input, bytesOf, shards),
    shardsNeeded: shardsNeeded(input, bytesOf),
  };
}

/** Even runs of experts, as the router's first placement cuts them where memory is no matter. */
function planShards(
  { config, memoryBytes }: InspectInput,
  bytesOf: readonly number[],
  shards: number,
): PlannedShard[] {
  const shares = expertsPerShard({
    layers: [0],
    bytesByExpert: bytesOf.map(() => 1),
    memoryBytes: Array.from({ length: shards }, () => config.numExperts),
  });
  const buffers = shardBufferBytes(config);
  let next = 0;
  return shares.map((expertsPerLayer, rank) => {
    const residentBytes = sum(bytesOf.slice(next, (next += expertsPerLayer)));
    const total = residentBytes + buffers;
    return {
      rank,
      expertsPerLayer,
      residentBytes,
      buffers,
      total,
      fits: total <= memoryBytes,
    };
  });
}

function shardsNeeded(input: InspectInput, bytesOf: readonly number[]): number | undefined {
  for (let shards = 1; shards <= input.config.numExperts; shards++) {
    if (planShards(input, bytesOf, shards).every(({ fits }) => fits)) return shards;
  }
  return undefined;
}

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0);
}
