/** Products with matrices that lie in slices: one kernel per number of rows, one run per slice. */

import type { WeightsDtype } from "../expert-device.ts";
import type { Gpu } from "./device.ts";
import { type Binding, type BoundKernel, compileKernel, type CompiledKernel } from "./kernel.ts";
import type { StepSizes } from "./kernels/counts.ts";
import { inputLoads } from "./kernels/shared-input.ts";
import { linear, type LinearEpilogue } from "./kernels/linear.ts";
import { type GpuMatrix, matrixSlices } from "./matrix.ts";

/** A kernel for one row at a time, and one for four. */
export type ByRows = readonly [CompiledKernel<StepSizes>, CompiledKernel<StepSizes>];

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

/** Compiles a product for one row and for four at a time. Rejects with KernelError. */
export async function compileLinear(gpu: Gpu, options: SlicedLinearOptions): Promise<SlicedLinear> {
  const { k, n, weights, epilogue, factor, rows } = options;
  const slices = matrixSlices(gpu, n, k, weights);
  const stride = Math.ceil(n / 4) * 4;
  const kernels = new Map<number, ByRows>();
  for (const slice of slices) {
    if (kernels.has(slice.rows)) continue;
    const loads = inputLoads(gpu.offers);
    const of = { k, n: slice.rows, stride, weights, epilogue, factor, loads };
    const compile = (atOnce: 1 | 4) =>
      compileKernel(gpu, linear({ ...of, lookup: { kind: rows, rows: atOnce } }));
    kernels.set(slice.rows, [await compile(1), await compile(4)]);
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

/** Binds both kernels; one row at a time runs where there is one, else four. */
export function bindByRows(
  [one, four]: ByRows,
  bind: (kernel: CompiledKernel<StepSizes>) => BoundKernel<StepSizes>,
  rows: "tokens" | "samples" = "tokens",
): BoundKernel<StepSizes> {
  const single = bind(one);
  const several = bind(four);
  return { encode: (pass, sizes) => (sizes[rows] === 1 ? single : several).encode(pass, sizes) };
}

/** A buffer of f32 from this column of its first row on. */
function from(buffer: GPUBuffer, column: number): Binding {
  if (column === 0) return buffer;
  return { buffer, offset: column * 4, size: buffer.size - column * 4 };
}
