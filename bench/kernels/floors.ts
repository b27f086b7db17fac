/** What a kernel must move and compute at the least, at the widths of published models; pure. */

import { type ExpertFormat, matrixBytes } from "../../core/expert-format.ts";

/** Widths of a published model, as far as its matrix products go. */
export interface ModelWidths {
  readonly hiddenSize: number;
  readonly expertIntermediateSize: number;
  readonly numExperts: number;
  readonly topK: number;
  readonly numHeads: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  readonly vocabSize: number;
}

/** The models whose widths are measured. */
export const WIDTHS = {
  "deepseek-moe-16b": {
    hiddenSize: 2048,
    expertIntermediateSize: 1408,
    numExperts: 64,
    topK: 6,
    numHeads: 16,
    numKvHeads: 16,
    headDim: 128,
    vocabSize: 102400,
  },
  "qwen3-30b-a3b": {
    hiddenSize: 2048,
    expertIntermediateSize: 768,
    numExperts: 128,
    topK: 8,
    numHeads: 32,
    numKvHeads: 4,
    headDim: 128,
    vocabSize: 151936,
  },
  mixtral: {
    hiddenSize: 4096,
    expertIntermediateSize: 14336,
    numExperts: 8,
    topK: 2,
    numHeads: 32,
    numKvHeads: 8,
    headDim: 128,
    vocabSize: 32000,
  },
} as const satisfies Record<string, ModelWidths>;

/** Name of a model whose widths are measured. */
export type WidthsName = keyof typeof WIDTHS;

/** Rows of a batch that are measured. */
export const ROW_COUNTS = [1, 4, 16, 64, 512] as const;

/** Matrix products of a step; the first two over experts, the others over one matrix. */
export const KERNELS = ["gate-up", "down", "qkv", "o", "lm_head", "gate"] as const;

/** Name of a measured matrix product. */
export type KernelName = (typeof KERNELS)[number];

/** Whether a kernel's weights are experts', which may be quantised and are chosen by routing. */
export function isExpertKernel(kernel: KernelName): kernel is "gate-up" | "down" {
  return kernel === "gate-up" || kernel === "down";
}

/** One matrix product: weights [matrices, n, k], each used by the same number of rows. */
export interface Product {
  /** Columns of the input. */
  readonly k: number;
  /** Rows of one weight matrix; of gate-up, gate and up together. */
  readonly n: number;
  /** Columns of the output: n, or half of it where gate and up become one. */
  readonly outputs: number;
  /** Matrices that are read. */
  readonly matrices: number;
  /** Rows of all matrices together; of experts, pairs of a row and one of its experts. */
  readonly pairs: number;
  /** Rows of the input that are read; a row that goes to several experts counts once. */
  readonly inputRows: number;
}

/**
 * The product of a kernel over `rows` rows of a batch whose routing is balanced: no expert is used twice before all are
 * used once. `heldExperts` bounds the experts where a device holds fewer than the model has.
 */
export function productOf(
  kernel: KernelName,
  widths: ModelWidths,
  rows: number,
  heldExperts: number = widths.numExperts,
): Product {
  const { hiddenSize: h, expertIntermediateSize: i, numHeads, numKvHeads, headDim } = widths;
  const pairs = rows * widths.topK;
  const matrices = Math.min(heldExperts, pairs);
  const one = (k: number, n: number): Product => ({
    k,
    n,
    outputs: n,
    matrices: 1,
    pairs: rows,
    inputRows: rows,
  });
  switch (kernel) {
    case "gate-up":
      return { k: h, n: 2 * i, outputs: i, matrices, pairs, inputRows: rows };
    case "down":
      return { k: i, n: h, outputs: h, matrices, pairs, inputRows: pairs };
    case "qkv":
      return one(h, (numHeads + 2 * numKvHeads) * headDim);
    case "o":
      return one(numHeads * headDim, h);
    case "lm_head":
      return one(h, widths.vocabSize);
    case "gate":
      return one(h, widths.numExperts);
  }
}

/** The least that a product moves and computes. */
export interface Work {
  /** Bytes of weights and scales, each once. */
  readonly weightBytes: number;
  /** Bytes of weights, and of inputs and outputs in f32, each once. */
  readonly bytes: number;
  /** Floating-point operations: two per multiply-add. */
  readonly operations: number;
}

/** Counts a product's bytes and operations. */
export function workOf(product: Product, format: ExpertFormat): Work {
  const { k, n, outputs, matrices, pairs, inputRows } = product;
  const weightBytes = matrices * matrixBytes(format, n, k);
  return {
    weightBytes,
    bytes: weightBytes + 4 * (inputRows * k + pairs * outputs),
    operations: 2 * pairs * n * k,
  };
}

/** What a device does at best, measured. */
export interface DeviceRates {
  /** Bytes read and written per second by a copy. */
  readonly bytesPerSecond: number;
  /** Floating-point operations per second of a large plain product. */
  readonly operationsPerSecond: number;
}

/** The two floors of a product on a device, seconds; no run takes less than the larger. */
export interface Floors {
  readonly memoryS: number;
  readonly computeS: number;
}

/** The floors of a product's work on a device. */
export function floorsOf(work: Work, rates: DeviceRates): Floors {
  return {
    memoryS: work.bytes / rates.bytesPerSecond,
    computeS: work.operations / rates.operationsPerSecond,
  };
}

/** How close a run came to a floor: 1 where it took no longer than the floor. */
export function fractionOf(floorS: number, seconds: number): number {
  return floorS / seconds;
}
