/**
 * Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434) on the router's GPU: the cache holds latent vectors, so the
 * matrices that make keys and values of them are multiplied into queries and into results instead.
 */

import type { WeightsDtype } from "../../../core/expert-device.ts";
import { allocate, type Gpu, STORAGE } from "../../../core/gpu/device.ts";
import { compileHeadLinear, type HeadProduct } from "../../../core/gpu/head-products.ts";
import { type BoundKernel, compileKernel, type CompiledKernel } from "../../../core/gpu/kernel.ts";
import type { StepSizes } from "../../../core/gpu/kernels/counts.ts";
import type { HeadLinearOptions } from "../../../core/gpu/kernels/head-linear.ts";
import { latentCache } from "../../../core/gpu/kernels/latent-cache.ts";
import { rmsNorm } from "../../../core/gpu/kernels/rms-norm.ts";
import { type GpuMatrix, rowsOf, uploadMatrix, writeRows } from "../../../core/gpu/matrix.ts";
import type { ProductChoice } from "../../../core/gpu/products.ts";
import { compileLinear, type SlicedLinear } from "../../../core/gpu/sliced-linear.ts";
import { uploadVectors } from "../../../core/gpu/weights.ts";
import type { LatentAttention, ModelConfig } from "../../../core/model/config.ts";
import type { LatentWeights } from "../../../core/model/checkpoint/weights.ts";
import { bytesOf, type HostTensor, toF32 } from "../../../core/tensor.ts";
import { weightBytes } from "../../../core/weights.ts";
import { type AttentionBlocks, type AttentionCore, compileAttention } from "./gpu-attention.ts";
import type { StepBuffers } from "./step-buffers.ts";

/** One layer's attention weights. */
export interface GpuLatentWeights {
  readonly kind: "latent";
  /** [qLoraRank or numHeads·(nopeDim + ropeDim), hiddenSize] above [kvLoraRank + ropeDim, hiddenSize] */
  readonly project: GpuMatrix;
  /** Where the query has a rank: f32 [qLoraRank], and [numHeads·(nopeDim + ropeDim), qLoraRank]. */
  readonly query?: { readonly norm: GPUBuffer; readonly up: GpuMatrix };
  /** f32 [kvLoraRank] */
  readonly kvNorm: GPUBuffer;
  /** [numHeads, kvLoraRank, nopeDim]: what makes a query of the latent vector out of a head's query. */
  readonly keyUp: GPUBuffer;
  /** [numHeads, valueDim, kvLoraRank] */
  readonly valueUp: GPUBuffer;
  /** [hiddenSize, numHeads·valueDim] */
  readonly output: GpuMatrix;
}

/** Uploads one layer's attention. Throws as `uploadMatrix`. */
export function uploadLatent(
  gpu: Gpu,
  at: string,
  of: LatentWeights,
  attention: LatentAttention,
  weights: WeightsDtype,
): GpuLatentWeights {
  const matrix = (name: string, ...tensors: readonly HostTensor[]) =>
    uploadMatrix(gpu, `${at} ${name}`, tensors, weights);
  const vectors = (name: string, tensor: HostTensor) =>
    uploadVectors(gpu, `${at} ${name}`, [tensor]);
  const { qDown, q, kvDown, kvNorm, o } = of;
  return {
    kind: "latent",
    project: matrix("q and latent vectors", qDown?.weight ?? q, kvDown),
    query: qDown && { norm: vectors("q norm", qDown.norm), up: matrix("q", q) },
    kvNorm: vectors("latent norm", kvNorm),
    ...uploadKeyAndValueUp(gpu, at, of.kvUp, attention, weights),
    output: matrix("attention output", o.weight),
  };
}

/** Splits [numHeads·(nopeDim + valueDim), kvLoraRank] into keys, transposed, and values of each head. */
function uploadKeyAndValueUp(
  gpu: Gpu,
  at: string,
  kvUp: HostTensor,
  { numHeads, kvLoraRank, nopeDim, valueDim }: LatentAttention,
  weights: WeightsDtype,
): Pick<GpuLatentWeights, "keyUp" | "valueUp"> {
  const bytes = weightBytes(weights) * kvLoraRank;
  const keyUp = allocate(gpu, `${at} key up`, numHeads * nopeDim * bytes, STORAGE);
  const valueUp = allocate(gpu, `${at} value up`, numHeads * valueDim * bytes, STORAGE);
  const name = `${at} key and value up`;
  for (let head = 0; head < numHeads; head++) {
    const row = head * (nopeDim + valueDim);
    const key = transposed(rowsOf(kvUp, { firstRow: row, rows: nopeDim }));
    const keyRows = { firstRow: 0, rows: kvLoraRank };
    writeRows(gpu, name, key, keyRows, weights, keyUp, head * nopeDim * bytes);
    const valueRows = { firstRow: row + nopeDim, rows: valueDim };
    writeRows(gpu, name, kvUp, valueRows, weights, valueUp, head * valueDim * bytes);
  }
  return { keyUp, valueUp };
}

function transposed(matrix: HostTensor): HostTensor {
  const [rows, columns] = matrix.shape;
  const values = toF32(matrix);
  const result = Float32Array.from(
    values,
    (_, i) => values[(i % rows) * columns + Math.floor(i / rows)],
  );
  return { shape: [columns, rows], dtype: "F32", bytes: bytesOf(result) };
}

/** The kernels of all layers' attention. */
export interface LatentKernels {
  readonly kind: "latent";
  readonly project: SlicedLinear;
  readonly cache: CompiledKernel<StepSizes>;
  readonly query?: { readonly norm: CompiledKernel<StepSizes>; readonly up: SlicedLinear };
  readonly keyUp: HeadProduct;
  readonly attention: AttentionCore;
  readonly valueUp: HeadProduct;
  readonly output: SlicedLinear;
}

/** Columns of a row of each of a step's attention buffers. */
export function latentWidths(attention: LatentAttention) {
  const { numHeads, qLoraRank, kvLoraRank, nopeDim, ropeDim, valueDim } = attention;
  const heads = numHeads * (nopeDim + ropeDim);
  return {
    projected: (qLoraRank ?? heads) + kvLoraRank + ropeDim,
    queryLatent: qLoraRank ?? 0,
    queryHeads: qLoraRank === undefined ? 0 : heads,
    query: numHeads * (kvLoraRank + ropeDim),
    attended: numHeads * kvLoraRank,
    values: numHeads * valueDim,
  };
}

/** Compiles them. Rejects with KernelError. */
export async function compileLatent(
  gpu: Gpu,
  choice: ProductChoice,
  config: ModelConfig,
  attention: LatentAttention,
  weights: WeightsDtype,
  blocks: AttentionBlocks,
): Promise<LatentKernels> {
  const { hiddenSize, rope, multipliers } = config;
  const { numHeads, qLoraRank, kvLoraRank, nopeDim, ropeDim, valueDim, normEps: eps } = attention;
  const widths = latentWidths(attention);
  const store = { weights, epilogue: "store", rows: "tokens" } as const;
  const perHead = (options: Omit<HeadLinearOptions, "numHeads" | "weights" | "rows">) =>
    compileHeadLinear(gpu, choice, { ...options, numHeads, weights });
  return {
    kind: "latent",
    project: await compileLinear(gpu, choice, { ...store, k: hiddenSize, n: widths.projected }),
    cache: await compileKernel(
      gpu,
      latentCache({
        rank: kvLoraRank,
        ropeDim,
        rowWidth: widths.projected,
        firstColumn: widths.projected - kvLoraRank - ropeDim,
        eps,
        interleaved: rope.interleaved,
      }),
    ),
    query:
      qLoraRank === undefined
        ? undefined
        : {
            norm: await compileKernel(
              gpu,
              rmsNorm({ hiddenSize: qLoraRank, eps, rows: "tokens", stride: widths.projected }),
            ),
            up: await compileLinear(gpu, choice, { ...store, k: qLoraRank, n: widths.queryHeads }),
          },
    keyUp: await perHead({
      k: nopeDim,
      n: kvLoraRank,
      headStride: nopeDim + ropeDim,
      tokenStride: widths.queryHeads || widths.projected,
      outStride: kvLoraRank + ropeDim,
      rope: { dim: ropeDim, interleaved: rope.interleaved },
    }),
    attention: await compileAttention(
      gpu,
      config.layers.map(() => undefined),
      {
        numHeads,
        numKvHeads: 1,
        keyDim: kvLoraRank + ropeDim,
        valueDim: kvLoraRank,
        slotWidth: kvLoraRank + ropeDim,
        valuesAt: 0,
        scale: attention.scale,
        sinks: false,
        ...blocks,
      },
    ),
    valueUp: await perHead({
      k: kvLoraRank,
      n: valueDim,
      headStride: kvLoraRank,
      tokenStride: widths.attended,
      outStride: valueDim,
    }),
    output: await compileLinear(gpu, choice, {
      k: widths.values,
      n: hiddenSize,
      weights,
      epilogue: "add",
      factor: multipliers.residual,
      rows: "tokens",
    }),
  };
}

/** Binds a layer's attention, from normed hidden states to what is added to the hidden states. */
export function bindLatent(
  k: LatentKernels,
  of: GpuLatentWeights,
  rope: GPUBuffer,
  b: StepBuffers,
  cache: GPUBuffer,
  layer: number,
): BoundKernel<StepSizes>[] {
  const { counts } = b;
  const positions = b.input("positions");
  return [
    k.project.bind(counts, b.normed, of.project, b.projected),
    k.cache.bind(counts, b.projected, of.kvNorm, rope, positions, b.input("cacheSlots"), cache),
    ...(k.query && of.query
      ? [
          k.query.norm.bind(counts, b.projected, of.query.norm, b.queryLatent),
          k.query.up.bind(counts, b.queryLatent, of.query.up, b.queryHeads),
        ]
      : []),
    ...k.keyUp.bind(
      counts,
      k.query ? b.queryHeads : b.projected,
      of.keyUp,
      b.query,
      rope,
      positions,
    ),
    k.attention.bind(layer, b, cache),
    ...k.valueUp.bind(counts, b.attended, of.valueUp, b.values),
    k.output.bind(counts, b.values, of.output, b.hidden),
  ];
}
