/** Products as real GPUs compute them, in shapes that software adapters compile in little time. */

import type { ProductCandidate, ProductChoice } from "../../core/gpu/products.ts";

/** For few rows. */
export const MATVEC: ProductCandidate = {
  kind: "matvec",
  rows: 1,
  shape: { threads: 32, columns: 1, reduce: "workgroup" },
};
/** For many rows. */
export const GEMM: ProductCandidate = {
  kind: "gemm",
  shape: { threads: [8, 8], block: [2, 2], tile: "f32" },
};

/** By family, so that all of them together take every kernel, and each few. */
export const FAST_PRODUCTS: Readonly<Record<string, ProductChoice>> = {
  // Projections that plain kernels fuse with positions, a gated shared expert: few rows and many.
  qwen2_moe: () => [
    { from: 1, candidate: MATVEC },
    { from: 9, candidate: GEMM },
  ],
  // A matrix per head, dense FFNs.
  deepseek_v3: ({ matrices }) => [{ from: 1, candidate: matrices === undefined ? MATVEC : GEMM }],
  // Biases everywhere.
  gpt_oss: ({ k, n }) => [{ from: 1, candidate: k < n ? GEMM : MATVEC }],
};
