/** A layer's attention on the CPU: its weights as f32 values, its cache, and its pass over a batch. */

import {
  attention,
  type HeadsOptions,
  latentAttention,
  type PagedCache,
} from "../../../core/cpu/attention.ts";
import { linear, rmsNorm } from "../../../core/cpu/operations.ts";
import { rotate } from "../../../core/cpu/rope.ts";
import {
  type HeadsAttention,
  kvWidth,
  type LatentAttention,
  type ModelConfig,
} from "../../../core/model/config.ts";
import type {
  HeadsWeights,
  LatentWeights,
  LayerWeights,
} from "../../../core/model/checkpoint/weights.ts";
import type { CpuLoader } from "./cpu-weights.ts";
import { BLOCK_SIZE, type StepBatch } from "../model-runner.ts";
import { LimitError } from "../runner-limits.ts";

/** What attention of one layer adds to the hidden states, from their norm [numTokens, hiddenSize]: same shape. */
export type CpuAttention = (normed: Float32Array, batch: StepBatch) => Float32Array;

/** What every layer's attention shares. */
export interface CpuAttentionContext {
  readonly config: ModelConfig;
  /** As of `ropeTable`. */
  readonly rope: Float32Array;
  readonly numBlocks: number;
}

/** Loads a layer's attention and makes its cache. Throws as `CpuLoader`. */
export function loadAttention(
  context: CpuAttentionContext,
  layer: number,
  { attention: weights }: LayerWeights,
  load: CpuLoader,
): CpuAttention {
  const { attention: sizes } = context.config;
  if (sizes.kind === "heads" && weights.kind === "heads") {
    return loadHeads(context, sizes, layer, weights, load);
  }
  if (sizes.kind === "latent" && weights.kind === "latent") {
    return loadLatent(context, sizes, weights, load);
  }
  throw new TypeError(`layer ${layer}: ${weights.kind} weights for ${sizes.kind} attention`);
}

function loadHeads(
  context: CpuAttentionContext,
  sizes: HeadsAttention,
  layer: number,
  weights: HeadsWeights,
  load: CpuLoader,
): CpuAttention {
  const { hiddenSize, rmsNormEps, rope: ropeConfig } = context.config;
  const q = load.projection("q", weights.q);
  const k = load.projection("k", weights.k);
  const v = load.projection("v", weights.v);
  const o = load.projection("attention output", weights.o);
  const qNorm = weights.qNorm && load.vector("q norm", weights.qNorm);
  const kNorm = weights.kNorm && load.vector("k norm", weights.kNorm);
  const sinks = weights.sinks && load.vector("sinks", weights.sinks);
  const { numHeads, numKvHeads, headDim, scale, clipQkv = Number.POSITIVE_INFINITY } = sizes;
  const options: HeadsOptions = {
    numHeads,
    numKvHeads,
    headDim,
    scale,
    window: sizes.windows[layer],
    sinks,
  };
  const cache = cacheOf(context);
  const clip = (x: Float32Array) => x.map((value) => Math.max(-clipQkv, Math.min(value, clipQkv)));
  // The norm's length says whether it goes over a head or over the whole projection.
  const norm = (x: Float32Array, by: Float32Array | undefined) =>
    by === undefined ? x : rmsNorm(x, by, rmsNormEps);
  return (normed, batch) => {
    const project = (of: typeof q) => linear(normed, of.weight, hiddenSize, of.bias);
    const queries = clip(norm(project(q), qNorm));
    const keys = clip(norm(project(k), kNorm));
    const values = clip(project(v));
    rotate(queries, batch.positions, context.rope, ropeConfig);
    rotate(keys, batch.positions, context.rope, ropeConfig);
    const paged = store(cache, batch, [keys, values]);
    const attended = attention(queries, batch.positions, paged, options);
    return linear(attended, o.weight, numHeads * headDim, o.bias);
  };
}

function loadLatent(
  context: CpuAttentionContext,
  sizes: LatentAttention,
  weights: LatentWeights,
  load: CpuLoader,
): CpuAttention {
  const { hiddenSize, rope: ropeConfig } = context.config;
  const { numHeads, kvLoraRank, nopeDim, ropeDim, valueDim, normEps } = sizes;
  const qDown = weights.qDown && {
    weight: load.matrix("q down", weights.qDown.weight),
    norm: load.vector("q norm", weights.qDown.norm),
  };
  const q = load.matrix("q", weights.q);
  const kvDown = load.matrix("kv down", weights.kvDown);
  const kvNorm = load.vector("kv norm", weights.kvNorm);
  const kvUp = load.matrix("kv up", weights.kvUp);
  const o = load.projection("attention output", weights.o);
  const cache = cacheOf(context);
  return (normed, batch) => {
    const input = qDown
      ? rmsNorm(linear(normed, qDown.weight, hiddenSize), qDown.norm, normEps)
      : normed;
    const queries = linear(input, q, input.length / batch.positions.length);
    rotate(queries, batch.positions, context.rope, ropeConfig, nopeDim + ropeDim);
    const down = linear(normed, kvDown, hiddenSize);
    const latents = rmsNorm(columns(down, kvLoraRank + ropeDim, 0, kvLoraRank), kvNorm, normEps);
    const keys = columns(down, kvLoraRank + ropeDim, kvLoraRank, ropeDim);
    rotate(keys, batch.positions, context.rope, ropeConfig);
    const paged = store(cache, batch, [latents, keys]);
    const attended = latentAttention(queries, batch.positions, paged, kvUp, sizes);
    return linear(attended, o.weight, numHeads * valueDim, o.bias);
  };
}

/** A layer's KV cache. Throws LimitError where there is no memory for it. */
function cacheOf({ config, numBlocks }: CpuAttentionContext): Float32Array {
  const length = numBlocks * BLOCK_SIZE * kvWidth(config.attention);
  try {
    return new Float32Array(length);
  } catch {
    throw new LimitError(
      `--kv-blocks ${numBlocks}: no memory for a layer's KV cache of ${length * Float32Array.BYTES_PER_ELEMENT} bytes`,
    );
  }
}

/** Writes each token's parts, one after the other, into its slot of the cache. */
function store(values: Float32Array, batch: StepBatch, parts: readonly Float32Array[]): PagedCache {
  const slotOf = (token: number, position: number) =>
    batch.blockTables[batch.sequenceRows[token]][Math.floor(position / BLOCK_SIZE)] * BLOCK_SIZE +
    (position % BLOCK_SIZE);
  const numTokens = batch.positions.length;
  const slotWidth = parts.reduce((sum, part) => sum + part.length, 0) / numTokens;
  batch.positions.forEach((position, token) => {
    let at = slotOf(token, position) * slotWidth;
    for (const part of parts) {
      const width = part.length / numTokens;
      values.set(part.subarray(token * width, (token + 1) * width), at);
      at += width;
    }
  });
  return { values, slotOf };
}

/** Columns [from, from + count) of x [rows, width]: [rows, count]. */
function columns(x: Float32Array, width: number, from: number, count: number): Float32Array {
  const rows = x.length / width;
  const out = new Float32Array(rows * count);
  for (let row = 0; row < rows; row++) {
    const at = row * width + from;
    out.set(x.subarray(at, at + count), row * count);
  }
  return out;
}
