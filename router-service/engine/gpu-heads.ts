/** Attention with keys and values per head on the router's GPU: its weights, its kernels, and their order in a layer. */

import type { WeightsDtype } from "../../core/expert-device.ts";
import type { Gpu } from "../../core/gpu/device.ts";
import { type BoundKernel, compileKernel } from "../../core/gpu/kernel.ts";
import type { StepSizes } from "../../core/gpu/kernels/counts.ts";
import { inputLoads } from "../../core/gpu/kernels/shared-input.ts";
import { qkvRope } from "../../core/gpu/kernels/qkv-rope.ts";
import { ropeCache } from "../../core/gpu/kernels/rope-cache.ts";
import { type GpuMatrix, uploadMatrix, uploadWhole } from "../../core/gpu/matrix.ts";
import {
  bindByRows,
  type ByRows,
  compileLinear,
  type SlicedLinear,
} from "../../core/gpu/sliced-linear.ts";
import { uploadVectors } from "../../core/gpu/weights.ts";
import type { HeadsAttention, ModelConfig } from "../../core/model/config.ts";
import type { HeadsWeights, Projection } from "../../core/model/weights.ts";
import type { HostTensor } from "../../core/tensor.ts";
import { type AttentionBlocks, type AttentionCore, compileAttention } from "./gpu-attention.ts";
import type { StepBuffers } from "./step-buffers.ts";

/** One layer's attention weights. */
export interface GpuHeadsWeights {
  readonly kind: "heads";
  /** [(numHeads + 2·numKvHeads)·headDim, hiddenSize], q above k above v */
  readonly qkv: GpuMatrix;
  /** f32 [(numHeads + 2·numKvHeads)·headDim]; zeros where the model has none */
  readonly qkvBias: GPUBuffer;
  /** f32, of q and then of k: [2, headDim] or [(numHeads + numKvHeads)·headDim] */
  readonly norms?: GPUBuffer;
  /** [hiddenSize, numHeads·headDim] */
  readonly output: GpuMatrix;
  /** f32 [hiddenSize] */
  readonly outputBias?: GPUBuffer;
  /** f32 [numHeads] */
  readonly sinks?: GPUBuffer;
}

/** Uploads one layer's attention. Throws as `uploadMatrix`. */
export function uploadHeads(
  gpu: Gpu,
  at: string,
  { q, k, v, o, qNorm, kNorm, sinks }: HeadsWeights,
  config: ModelConfig,
  weights: WeightsDtype,
): GpuHeadsWeights {
  const { attention } = config;
  if (attention.kind !== "heads") throw new TypeError(`${at}: attention is latent`);
  // The fused kernel takes one buffer.
  const upload = isFused(config, attention) ? uploadWhole : uploadMatrix;
  const vectors = (name: string, ...tensors: readonly HostTensor[]) =>
    uploadVectors(gpu, `${at} ${name}`, tensors);
  const qkv = [q, k, v];
  return {
    kind: "heads",
    qkv: upload(
      gpu,
      `${at} q, k and v`,
      qkv.map(({ weight }) => weight),
      weights,
    ),
    qkvBias: vectors("q, k and v bias", ...qkv.map(biasOf)),
    norms: qNorm && kNorm && vectors("q and k norms", qNorm, kNorm),
    output: uploadMatrix(gpu, `${at} attention output`, [o.weight], weights),
    outputBias: o.bias && vectors("attention output bias", o.bias),
    sinks: sinks && vectors("attention sinks", sinks),
  };
}

/** The kernels of all layers' attention. */
export interface HeadsKernels {
  readonly kind: "heads";
  readonly project: Projecting;
  readonly attention: AttentionCore;
  readonly output: SlicedLinear;
}

/** Projections, norms and positions in one kernel where nothing but a bias stands between them, else in two. */
type Projecting =
  | { readonly kind: "fused"; readonly qkvRope: ByRows }
  | { readonly kind: "split"; readonly qkv: SlicedLinear; readonly ropeCache: ByRows[0] };

function isFused(config: ModelConfig, { qkNorm, clipQkv }: HeadsAttention): boolean {
  return qkNorm === "none" && clipQkv === undefined && !config.rope.interleaved;
}

/** Columns of a row of each of a step's attention buffers. */
export function headsWidths(config: ModelConfig, attention: HeadsAttention) {
  const { numHeads, numKvHeads, headDim } = attention;
  return {
    projected: isFused(config, attention) ? 0 : (numHeads + 2 * numKvHeads) * headDim,
    queryLatent: 0,
    queryHeads: 0,
    query: numHeads * headDim,
    attended: numHeads * headDim,
    values: 0,
  };
}

/** Compiles them. Rejects with KernelError. */
export async function compileHeads(
  gpu: Gpu,
  config: ModelConfig,
  attention: HeadsAttention,
  weights: WeightsDtype,
  blocks: AttentionBlocks,
): Promise<HeadsKernels> {
  const { hiddenSize, rmsNormEps: eps, rope, multipliers } = config;
  const { numHeads, numKvHeads, headDim, outputBias, qkNorm, clipQkv } = attention;
  const sizes = {
    hiddenSize,
    numHeads,
    numKvHeads,
    headDim,
    weights,
    loads: inputLoads(gpu.offers),
  };
  const fused = (rows: 1 | 4) => compileKernel(gpu, qkvRope({ ...sizes, rows }));
  const columns = (numHeads + 2 * numKvHeads) * headDim;
  return {
    kind: "heads",
    project: isFused(config, attention)
      ? { kind: "fused", qkvRope: [await fused(1), await fused(4)] }
      : {
          kind: "split",
          qkv: await compileLinear(gpu, {
            k: hiddenSize,
            n: columns,
            weights,
            epilogue: "storeBiased",
            rows: "tokens",
          }),
          ropeCache: await compileKernel(
            gpu,
            ropeCache({
              ...sizes,
              norm: qkNorm,
              eps,
              clip: clipQkv,
              interleaved: rope.interleaved,
            }),
          ),
        },
    attention: await compileAttention(gpu, attention.windows, {
      numHeads,
      numKvHeads,
      keyDim: headDim,
      valueDim: headDim,
      slotWidth: 2 * numKvHeads * headDim,
      valuesAt: numKvHeads * headDim,
      scale: attention.scale,
      sinks: attention.sinks,
      ...blocks,
    }),
    output: await compileLinear(gpu, {
      k: numHeads * headDim,
      n: hiddenSize,
      weights,
      epilogue: outputBias ? "addBiased" : "add",
      factor: multipliers.residual,
      rows: "tokens",
    }),
  };
}

/** Binds a layer's attention, from normed hidden states to what is added to the hidden states. */
export function bindHeads(
  k: HeadsKernels,
  of: GpuHeadsWeights,
  rope: GPUBuffer,
  b: StepBuffers,
  cache: GPUBuffer,
  layer: number,
): BoundKernel<StepSizes>[] {
  return [
    ...bindProjecting(k.project, of, rope, b, cache),
    k.attention.bind(layer, b, cache, of.sinks),
    k.output.bind(b.counts, b.attended, of.output, b.hidden, of.outputBias),
  ];
}

function bindProjecting(
  project: Projecting,
  of: GpuHeadsWeights,
  rope: GPUBuffer,
  b: StepBuffers,
  cache: GPUBuffer,
): BoundKernel<StepSizes>[] {
  const positions = b.input("positions");
  const slots = b.input("cacheSlots");
  if (project.kind === "fused") {
    const [{ buffer }] = of.qkv;
    return [
      bindByRows(project.qkvRope, (kernel) =>
        kernel.bind(b.counts, b.normed, buffer, of.qkvBias, rope, positions, slots, b.query, cache),
      ),
    ];
  }
  const norms = of.norms === undefined ? [] : [of.norms];
  return [
    project.qkv.bind(b.counts, b.normed, of.qkv, b.projected, of.qkvBias),
    project.ropeCache.bind(b.counts, b.projected, rope, positions, slots, b.query, cache, ...norms),
  ];
}

function biasOf({ weight, bias }: Projection): HostTensor {
  const [length] = weight.shape;
  return bias ?? { shape: [length], dtype: "F32", bytes: new Uint8Array(length * 4) };
}
