/** What a router takes beside routed experts: weights, KV cache, working buffers; from the config alone. */

import type { WeightsDtype } from "../../core/expert-device.ts";
import { listBuffers, totalBytes } from "../../core/gpu/measuring-gpu.ts";
import { STORAGE } from "../../core/gpu/device.ts";
import { gateStride } from "../../core/gpu/kernels/gate.ts";
import { type ModelConfig, moeLayers } from "../../core/model/config.ts";
import { type ModelPart, modelSize, type PartSize } from "../../core/model/footprint.ts";
import { weightBytes } from "../../core/weights.ts";
import { BLOCK_SIZE } from "./model-runner.ts";
import { type RunnerLimits, secondHalfLimits } from "./runner-limits.ts";
import { allocateCaches, allocateStepBuffers } from "./gpu/step-buffers.ts";

/** A buffer that no binding of an adapter takes. */
export interface LargeBuffer {
  readonly label: string;
  readonly bytes: number;
}

/** Bytes that a router takes on its GPU, without routed experts. */
export interface RouterMemory {
  /** Weights by part. */
  readonly weights: Readonly<Record<Exclude<ModelPart, "experts">, number>>;
  /** The rotary table. */
  readonly rope: number;
  readonly kvCache: number;
  /** Of the cache, all layers together. */
  readonly kvPerToken: number;
  /** Buffers of a step. */
  readonly buffers: number;
  /** Buffers that kernels bind whole, where they are larger than a binding. */
  readonly tooLarge: readonly LargeBuffer[];
  /** Everything together. */
  readonly total: number;
}

/**
 * Counts what a router takes on its GPU.
 * @param remote its experts are on shards, and micro-batches take turns
 * @param bindingBytes largest binding of the adapter
 */
export function routerMemory(
  config: ModelConfig,
  dtype: WeightsDtype,
  limits: RunnerLimits,
  remote: boolean,
  bindingBytes: number,
): RouterMemory {
  const weights = routerWeights(config, dtype);
  const rope = limits.maxModelLen * config.rope.dim * 4;
  const caches = listBuffers((gpu) => allocateCaches(gpu, config, limits));
  const kvCache = totalBytes(caches);
  const microBatches = remote ? [limits, secondHalfLimits(limits)] : [limits];
  const stepBuffers = listBuffers((gpu) => {
    for (const of of microBatches) allocateStepBuffers(gpu, config, of);
  });
  const buffers = totalBytes(stepBuffers);
  const weightsTotal = Object.values(weights).reduce((sum, bytes) => sum + bytes, 0);
  return {
    weights,
    rope,
    kvCache,
    kvPerToken: kvCache / (limits.numBlocks * BLOCK_SIZE),
    buffers,
    tooLarge: [{ label: "rotary table", bytes: rope, usage: STORAGE }, ...caches, ...stepBuffers]
      .filter(({ bytes, usage }) => usage === STORAGE && bytes > bindingBytes)
      .map(({ label, bytes }) => ({ label, bytes })),
    total: weightsTotal + rope + kvCache + buffers,
  };
}

/** Matrices in the cluster's dtype, vectors and gates in f32. */
function routerWeights(config: ModelConfig, dtype: WeightsDtype): RouterMemory["weights"] {
  const size = modelSize(config);
  const perWeight = weightBytes(dtype);
  const bytes = (part: PartSize) => part.matrices * perWeight + part.vectors * 4;
  return {
    embedding: bytes(size.embedding),
    lmHead: bytes(size.lmHead),
    attention: bytes(size.attention),
    // With a row for the shared expert's gate, there or not, and rows that fill up.
    gates: moeLayers(config).length * gateStride(config.numExperts) * config.hiddenSize * 4,
    shared: bytes(size.shared),
    dense: bytes(size.dense),
  };
}
