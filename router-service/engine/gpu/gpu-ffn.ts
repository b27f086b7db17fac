/**
 * Gated FFNs on the router's GPU: dense layers and shared experts. One whose matrices are larger than a binding takes is
 * a sum of narrower ones.
 */

import type { ExpertWeights, WeightsDtype } from "../../../core/expert-device.ts";
import { allocate, type Gpu, STORAGE } from "../../../core/gpu/device.ts";
import type { BoundKernel } from "../../../core/gpu/kernel.ts";
import type { StepSizes } from "../../../core/gpu/kernels/counts.ts";
import { inputLoads } from "../../../core/gpu/kernels/shared-input.ts";
import {
  columnsOf,
  type GpuMatrix,
  type RowSlice,
  rowSlices,
  uploadMatrix,
  writeRows,
} from "../../../core/gpu/matrix.ts";
import { gateUpKernel, type ProductChoice } from "../../../core/gpu/products.ts";
import {
  bindByRows,
  type ByRows,
  compileByRows,
  compileLinear,
  type SlicedLinear,
} from "../../../core/gpu/sliced-linear.ts";
import { weightBytes } from "../../../core/weights.ts";
import type { StepBuffers } from "./step-buffers.ts";

/** An FFN's parts in order. */
export type GpuFfnWeights = readonly GpuFfnPart[];

/** Some of an FFN's inner columns. */
export interface GpuFfnPart {
  readonly width: number;
  /** [2·width, hiddenSize], gate above up */
  readonly gateUp: GPUBuffer;
  /** [hiddenSize, width] */
  readonly down: GpuMatrix;
}

/** Inner columns of each part. */
function ffnParts(gpu: Gpu, width: number, hiddenSize: number, weights: WeightsDtype): RowSlice[] {
  return rowSlices(width, 2 * hiddenSize * weightBytes(weights), gpu.maxBindingBytes);
}

/** Uploads an FFN. Throws as `uploadMatrix`. */
export function uploadFfn(
  gpu: Gpu,
  at: string,
  { gate, up, down }: ExpertWeights,
  weights: WeightsDtype,
): GpuFfnWeights {
  const [width, hiddenSize] = gate.shape;
  return ffnParts(gpu, width, hiddenSize, weights).map((part) => {
    const bytes = part.rows * hiddenSize * weightBytes(weights);
    const both = allocate(gpu, `${at} gate and up`, 2 * bytes, STORAGE);
    writeRows(gpu, `${at} gate`, gate, part, weights, both, 0);
    writeRows(gpu, `${at} up`, up, part, weights, both, bytes);
    const columns = columnsOf(down, part.firstRow, part.rows);
    return {
      width: part.rows,
      gateUp: both,
      down: uploadMatrix(gpu, `${at} down`, [columns], weights),
    };
  });
}

/** The kernels of an FFN's parts by width. */
export type FfnKernels = ReadonlyMap<
  number,
  { readonly gateUp: ByRows; readonly down: SlicedLinear }
>;

/** What an FFN's kernels depend on. */
export interface FfnOptions {
  readonly hiddenSize: number;
  readonly width: number;
  readonly weights: WeightsDtype;
  /** Results are added to the hidden states: as they are, or scaled per row. */
  readonly epilogue: "add" | "addScaled";
  /** What results are multiplied by before they are added. */
  readonly factor: number;
}

/** Compiles an FFN's kernels. Rejects with KernelError. */
export async function compileFfn(
  gpu: Gpu,
  choice: ProductChoice,
  options: FfnOptions,
): Promise<FfnKernels> {
  const { hiddenSize, width, weights, epilogue, factor } = options;
  const loads = inputLoads(gpu.offers);
  const kernels = new Map<number, { gateUp: ByRows; down: SlicedLinear }>();
  for (const { rows: part } of ffnParts(gpu, width, hiddenSize, weights)) {
    if (kernels.has(part)) continue;
    const ranges = choice({ k: hiddenSize, n: part, gated: true });
    const down = { k: part, n: hiddenSize, weights, epilogue, factor, rows: "tokens" } as const;
    kernels.set(part, {
      gateUp: await compileByRows(gpu, ranges, ({ candidate }) =>
        gateUpKernel(candidate, { hiddenSize, intermediateSize: part, weights, loads }),
      ),
      down: await compileLinear(gpu, choice, down),
    });
  }
  return kernels;
}

/** Binds an FFN of the normed hidden states, added to the hidden states, times `scale` f32 [numTokens] where it is scaled. */
export function bindFfn(
  kernels: FfnKernels,
  ffn: GpuFfnWeights,
  b: StepBuffers,
  scale?: GPUBuffer,
): BoundKernel<StepSizes>[] {
  return ffn.flatMap((part) => {
    const k = kernels.get(part.width);
    if (k === undefined) throw new RangeError(`an FFN of ${part.width} columns was not compiled`);
    return [
      bindByRows(k.gateUp, (kernel) => kernel.bind(b.counts, b.normed, part.gateUp, b.inner)),
      k.down.bind(b.counts, b.inner, part.down, b.hidden, scale),
    ];
  });
}
