/** Products of rows that consist of heads with a matrix per head, and rotary positions beside them. */

import type { Gpu } from "./device.ts";
import { type Binding, type BoundKernel, compileKernel } from "./kernel.ts";
import type { StepSizes } from "./kernels/counts.ts";
import { headLinear, type HeadLinearOptions } from "./kernels/head-linear.ts";
import { turnHeads } from "./kernels/turn-heads.ts";
import { isPlain, type ProductChoice, productKernel } from "./products.ts";
import { bindByRows, compileByRows } from "./sliced-linear.ts";

/** A product with a matrix per head, compiled. */
export interface HeadProduct {
  /**
   * Binds input f32 [numTokens, tokenStride], matrices [numHeads, n, k] and result f32 [numTokens, numHeads, outStride];
   * then rotary table f32 [maxPositions, rope.dim/2, 2] and positions u32 [numTokens], where columns are turned.
   */
  bind(
    counts: GPUBuffer,
    x: GPUBuffer,
    weights: GPUBuffer,
    out: GPUBuffer,
    ...turning: readonly Binding[]
  ): BoundKernel<StepSizes>[];
}

/**
 * Compiles a product for all numbers of rows, options as those of the kernel `headLinear`: plain kernels turn columns
 * themselves, others leave it to a kernel of its own. Rejects with KernelError.
 */
export async function compileHeadLinear(
  gpu: Gpu,
  choice: ProductChoice,
  options: Omit<HeadLinearOptions, "rows">,
): Promise<HeadProduct> {
  const { numHeads, k, n, headStride, tokenStride, outStride, rope, weights } = options;
  const ranges = choice({ k, n, matrices: numHeads });
  if (isPlain(ranges)) {
    const kernels = await compileByRows(gpu, ranges, ({ candidate }) =>
      headLinear({ ...options, rows: candidate.rows }),
    );
    return {
      bind: (...bindings) => [bindByRows(kernels, (kernel) => kernel.bind(...bindings))],
    };
  }
  const heads = { numHeads, headStride, tokenStride, outStride };
  const product = { k, n, heads, weights, epilogue: "store" } as const;
  const kernels = await compileByRows(gpu, ranges, ({ candidate }) =>
    productKernel(candidate, product, "tokens"),
  );
  const turn =
    rope && (await compileKernel(gpu, turnHeads({ ...heads, ...rope, first: k, outFirst: n })));
  return {
    bind: (counts, x, matrices, out, ...turning) => [
      bindByRows(kernels, (kernel) => kernel.bind(counts, x, matrices, out)),
      ...(turn ? [turn.bind(counts, x, ...turning, out)] : []),
    ],
  };
}
