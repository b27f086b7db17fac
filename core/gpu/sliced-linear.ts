/** Products with matrices that lie in slices: one kernel per range of numbers of rows, one run per slice. */

import type { WeightsDtype } from "../expert-device.ts";
import type { Gpu } from "./device.ts";
import {
  type Binding,
  type BoundKernel,
  compileKernel,
  type CompiledKernel,
  type Kernel,
} from "./kernel.ts";
import type { StepSizes } from "./kernels/counts.ts";
import { inputLoads } from "./kernels/shared-input.ts";
import type { LinearEpilogue } from "./kernels/linear.ts";
import { type GpuMatrix, matrixSlices } from "./matrix.ts";
import { type ProductChoice, productKernel, type RowRange } from "./products.ts";

/** Kernels with the same bindings, each good from a number of rows on; the fewest rows first. */
export type ByRows = readonly {
  readonly from: number;
  readonly kernel: CompiledKernel<StepSizes>;
}[];

/** What a product does; options as those of the kernel `linear`. */
export interface SlicedLinearOptions {
  readonly k: number;
  /** Rows of the matrix, that is columns of the result. */
  readonly n: number;
  readonly weights: WeightsDtype;
  readonly epilogue: LinearEpilogue;
  readonly factor?: number;
  readonly rows: "tokens" | "samples";
}

/** A product with a matrix of known shape, compiled. */
export interface SlicedLinear {
  /**
   * Binds input f32 [rows, k], matrix [n, k] and result f32 [rows, n filled up to a multiple of four]; then a bias f32
   * [n] or a scale per row, where the epilogue takes one.
   */
  bind(
    counts: GPUBuffer,
    x: GPUBuffer,
    matrix: GpuMatrix,
    out: GPUBuffer,
    term?: GPUBuffer,
  ): BoundKernel<StepSizes>;
}

/** Compiles a product for all numbers of rows. Rejects with KernelError. */
export async function compileLinear(
  gpu: Gpu,
  choice: ProductChoice,
  options: SlicedLinearOptions,
): Promise<SlicedLinear> {
  const { k, n, weights, epilogue, factor, rows } = options;
  const slices = matrixSlices(gpu, n, k, weights);
  const stride = Math.ceil(n / 4) * 4;
  const kernels = new Map<number, ByRows>();
  for (const slice of slices) {
    if (kernels.has(slice.rows)) continue;
    const loads = inputLoads(gpu.offers);
    const product = { k, n: slice.rows, stride, weights, epilogue, factor, loads };
    const compiled = await compileByRows(gpu, choice(product), ({ candidate }) =>
      productKernel(candidate, product, rows),
    );
    kernels.set(slice.rows, compiled);
  }
  const biased = epilogue === "storeBiased" || epilogue === "addBiased";
  return {
    bind(counts, x, matrix, out, term) {
      const runs = matrix.map(({ buffer, firstRow, rows: number }) => {
        const kernel = kernels.get(number);
        if (kernel === undefined) {
          throw new RangeError(`a matrix with a slice of ${number} rows, compiled for ${n} rows`);
        }
        const terms = term === undefined ? [] : [biased ? from(term, firstRow) : term];
        return bindByRows(
          kernel,
          (compiled) => compiled.bind(counts, x, buffer, from(out, firstRow), ...terms),
          rows,
        );
      });
      return { encode: (pass, sizes) => runs.forEach((run) => run.encode(pass, sizes)) };
    },
  };
}

/** Compiles the kernel of each range. Rejects with KernelError. */
export async function compileByRows<Range extends Pick<RowRange, "from">>(
  gpu: Gpu,
  ranges: readonly Range[],
  kernelOf: (range: Range) => Kernel<StepSizes>,
): Promise<ByRows> {
  const compiled = [];
  for (const range of ranges) {
    compiled.push({ from: range.from, kernel: await compileKernel(gpu, kernelOf(range)) });
  }
  return compiled;
}

/** Binds the kernels; the one runs in whose range the number of rows lies. */
export function bindByRows(
  kernels: ByRows,
  bind: (kernel: CompiledKernel<StepSizes>) => BoundKernel<StepSizes>,
  rows: "tokens" | "samples" = "tokens",
): BoundKernel<StepSizes> {
  const bound = kernels.map(({ from, kernel }) => ({ from, run: bind(kernel) }));
  return {
    encode(pass, sizes) {
      const of = bound.findLast(({ from }) => from <= sizes[rows]) ?? bound[0];
      of.run.encode(pass, sizes);
    },
  };
}

/** A buffer of f32 from this column of its first row on. */
function from(buffer: GPUBuffer, column: number): Binding {
  if (column === 0) return buffer;
  return { buffer, offset: column * 4, size: buffer.size - column * 4 };
}
