/** Attention with keys and values per head on the router's GPU: its weights, its kernels, and their order in a layer. */

import type { WeightsDtype } from "../../../core/expert-device.ts";
import type { Gpu } from "../../../core/gpu/device.ts";
import { type BoundKernel, compileKernel, type CompiledKernel } from "../../../core/gpu/kernel.ts";
import type { StepSizes } from "../../../core/gpu/kernels/counts.ts";
import { inputLoads } from "../../../core/gpu/kernels/shared-input.ts";
import { qkvRope } from "../../../core/gpu/kernels/qkv-rope.ts";
import { ropeCache } from "../../../core/gpu/kernels/rope-cache.ts";
import { type GpuMatrix, matrixSlices, uploadMatrix } from "../../../core/gpu/matrix.ts";
import { isPlain, type ProductChoice } from "../../../core/gpu/products.ts";
import {
  bindByRows,
  type ByRows,
  compileByRows,
  compileLinear,
  type SlicedLinear,
} from "../../../core/gpu/sliced-linear.ts";
import { uploadVectors } from "../../../core/gpu/weights.ts";
import type { HeadsAttention, ModelConfig } from "../../../core/model/config.ts";
import type { HeadsWeights, Projection } from "../../../core/model/checkpoint/weights.ts";
import type { HostTensor } from "../../../core/tensor.ts";
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
  weights: WeightsDtype,
): GpuHeadsWeights {
  const vectors = (name: string, ...tensors: readonly HostTensor[]) =>
    uploadVectors(gpu, `${at} ${name}`, tensors);
  const qkv = [q, k, v];
  return {
    kind: "heads",
    qkv: uploadMatrix(
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

/**
 * Projections and positions in one kernel where nothing but a bias stands between them, the kernels are plain ones and
 * the matrix lies in one buffer; else in two.
 */
type Projecting =
  | { readonly kind: "fused"; readonly qkvRope: ByRows }
  | {
      readonly kind: "split";
      readonly qkv: SlicedLinear;
      readonly ropeCache: CompiledKernel<StepSizes>;
    };

/** Columns of a row of each of a step's attention buffers. */
export function headsWidths({ numHeads, numKvHeads, headDim }: HeadsAttention) {
  return {
    projected: (numHeads + 2 * numKvHeads) * headDim,
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
  choice: ProductChoice,
  config: ModelConfig,
  attention: HeadsAttention,
  weights: WeightsDtype,
  blocks: AttentionBlocks,
): Promise<HeadsKernels> {
  const { hiddenSize, multipliers } = config;
  const { numHeads, numKvHeads, headDim, outputBias } = attention;
  return {
    kind: "heads",
    project: await compileProjecting(gpu, choice, config, attention, weights),
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
    output: await compileLinear(gpu, choice, {
      k: numHeads * headDim,
      n: hiddenSize,
      weights,
      epilogue: outputBias ? "addBiased" : "add",
      factor: multipliers.residual,
      rows: "tokens",
    }),
  };
}

async function compileProjecting(
  gpu: Gpu,
  choice: ProductChoice,
  config: ModelConfig,
  attention: HeadsAttention,
  weights: WeightsDtype,
): Promise<Projecting> {
  const { hiddenSize, rmsNormEps: eps, rope } = config;
  const { numHeads, numKvHeads, headDim, qkNorm, clipQkv } = attention;
  const loads = inputLoads(gpu.offers);
  const sizes = { hiddenSize, numHeads, numKvHeads, headDim, weights, loads };
  const product = { k: hiddenSize, n: headsWidths(attention).projected };
  const ranges = choice(product);
  if (
    isPlain(ranges) &&
    qkNorm === "none" &&
    clipQkv === undefined &&
    !rope.interleaved &&
    matrixSlices(gpu, product.n, product.k, weights).length === 1
  ) {
    const qkv = await compileByRows(gpu, ranges, ({ candidate }) =>
      qkvRope({ ...sizes, rows: candidate.rows }),
    );
    return { kind: "fused", qkvRope: qkv };
  }
  const { interleaved } = rope;
  return {
    kind: "split",
    qkv: await compileLinear(gpu, choice, {
      ...product,
      weights,
      epilogue: "storeBiased",
      rows: "tokens",
    }),
    ropeCache: await compileKernel(
      gpu,
      ropeCache({ ...sizes, norm: qkNorm, eps, clip: clipQkv, interleaved }),
    ),
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
