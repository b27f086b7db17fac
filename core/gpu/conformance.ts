/**
 * Whether an adapter computes experts rightly: every kernel that a process will use runs once at the model's own widths,
 * over random weights, and some of its results are compared with sums of the same products in plain loops.
 *
 * An error is counted as a share of the sum of the products' magnitudes, so that it does not depend on how much cancels
 * out; of gate and up together, as what the activation can make of both their errors.
 */

import { activate } from "../cpu/activation.ts";
import type { ExpertSizes } from "../expert-device.ts";
import { type ExpertFormat, rowScaleWords, rowWords } from "../expert-format.ts";
import { unpackRow } from "../packing/quantize.ts";
import { allocate, type Gpu, STORAGE } from "./device.ts";
import { largestPart } from "./expert-banks.ts";
import { type ExpertKernels, type ExpertRegime, EXACT } from "./expert-kernels.ts";
import { compileKernel } from "./kernel.ts";
import { combine } from "./kernels/combine.ts";
import { fillWord } from "./kernels/fill.ts";
import {
  compileHalves,
  readFloats,
  scaleBits,
  SyntheticExperts,
  WEIGHT_BITS,
} from "./synthetic-experts.ts";

/** A kernel's results are not what they should be. */
export class ConformanceError extends Error {
  override readonly name = "ConformanceError";
  constructor(kernel: string, adapter: string, error: number, limit: number) {
    super(
      `kernel ${kernel} on ${adapter}: error ${error.toExponential(2)} against the plain loops, at most ${limit}; this adapter can not be used`,
    );
  }
}

/** What one kernel was found to do. */
export interface KernelConformance {
  readonly kernel: string;
  readonly error: number;
  readonly limit: number;
}

/** Outputs that are compared per pair. */
const CHECKED_COLUMNS = 16;

/** Slots, and experts per row, of a run: two where one binding takes both, so that a model whose experts fit can be checked. */
export function checkedSlots(
  sizes: ExpertSizes,
  format: ExpertFormat,
  maxBindingBytes: number,
): 1 | 2 {
  return 2 * largestPart(sizes, format) <= maxBindingBytes ? 2 : 1;
}

/** Random words and what they stand for: a matrix row as `fill` has made it. */
function randomRow(format: ExpertFormat, row: number, k: number): Float32Array {
  const words = (count: number, [mask, set]: readonly [number, number]) =>
    Uint32Array.from({ length: count }, (_, i) => fillWord(row * count + i, mask, set));
  const weights = words(rowWords(format, k), WEIGHT_BITS[format]);
  const scales = words(rowScaleWords(format, k), scaleBits(format));
  const out = new Float32Array(k);
  unpackRow(format, { weights, scales }, 0, k, out);
  return out;
}

/** A sum of products and of their magnitudes. */
function product(a: Float32Array, b: Float32Array): { sum: number; magnitude: number } {
  let sum = 0;
  let magnitude = 0;
  for (let i = 0; i < a.length; i++) {
    sum += a[i] * b[i];
    magnitude += Math.abs(a[i] * b[i]);
  }
  return { sum, magnitude };
}

/** The largest of some errors; not a number counts as infinite. */
function worst(errors: readonly number[]): number {
  return Math.max(
    ...errors.map((error) => (Number.isNaN(error) ? Number.POSITIVE_INFINITY : error)),
  );
}

/** Columns spread over a width, its first and last among them. */
function spread(width: number): number[] {
  const count = Math.min(width, CHECKED_COLUMNS);
  return Array.from({ length: count }, (_, i) => Math.round((i * (width - 1)) / (count - 1)));
}

/** Pairs of a run that are compared: the first and the last of each slot. */
function checkedPairs(numPairs: number): number[] {
  return [...new Set([0, 1, numPairs - 2, numPairs - 1])].filter(
    (pair) => pair >= 0 && pair < numPairs,
  );
}

/** Values of x as `fill` has made them: [k] of a row. */
function inputRow(row: number, k: number): Float32Array {
  return randomRow("f32", row, k);
}

function gateUpErrors(
  { hiddenSize, expertIntermediateSize: width, activation, expertBias }: ExpertSizes,
  format: ExpertFormat,
  numSlots: number,
  inner: Float32Array,
): number[] {
  const biases = expertBias
    ? randomRow("f32", 0, numSlots * Math.max(2 * width, hiddenSize))
    : undefined;
  return checkedPairs(inner.length / width).flatMap((pair) => {
    const slot = pair % numSlots;
    const x = inputRow(Math.floor(pair / numSlots), hiddenSize);
    return spread(width).map((column) => {
      const row = slot * 2 * width + column;
      const gate = product(randomRow(format, row, hiddenSize), x);
      const up = product(randomRow(format, row + width, hiddenSize), x);
      const g = gate.sum + (biases?.[row] ?? 0);
      const u = up.sum + (biases?.[row + width] ?? 0);
      const scale = gate.magnitude * (1 + Math.abs(u)) + up.magnitude * (1 + Math.abs(g));
      return Math.abs(inner[pair * width + column] - activate(activation, g, u)) / scale;
    });
  });
}

function downErrors(
  { hiddenSize, expertIntermediateSize: width, expertBias }: ExpertSizes,
  format: ExpertFormat,
  numSlots: number,
  inner: Float32Array,
  results: Float32Array,
): number[] {
  const biases = expertBias
    ? randomRow("f32", 0, numSlots * Math.max(2 * width, hiddenSize))
    : undefined;
  return checkedPairs(results.length / hiddenSize).flatMap((pair) => {
    const states = inner.subarray(pair * width, (pair + 1) * width);
    return spread(hiddenSize).map((column) => {
      const row = (pair % numSlots) * hiddenSize + column;
      const { sum, magnitude } = product(randomRow(format, row, width), states);
      const expected = sum + (biases?.[row] ?? 0);
      return Math.abs(results[pair * hiddenSize + column] - expected) / Math.max(1e-30, magnitude);
    });
  });
}

function combineErrors(
  hiddenSize: number,
  numSlots: number,
  results: Float32Array,
  sums: Float32Array,
): number[] {
  const rows = sums.length / hiddenSize;
  return [0, rows - 1].flatMap((row) =>
    spread(hiddenSize).map((column) => {
      let sum = 0;
      let magnitude = 1e-30;
      for (let j = 0; j < numSlots; j++) {
        const value = results[(row * numSlots + j) * hiddenSize + column];
        sum += value;
        magnitude += Math.abs(value);
      }
      return Math.abs(sums[row * hiddenSize + column] - sum) / magnitude;
    }),
  );
}

/** Runs one regime in one format. Rows: one tile full and one with three rows, of each slot. */
async function checkRegime(
  gpu: Gpu,
  sizes: ExpertSizes,
  format: ExpertFormat,
  { group, bank, limit }: ExpertRegime,
): Promise<KernelConformance[]> {
  const tokens = group === undefined ? 1 : group + 3;
  const kernels = bank(format);
  const numSlots = checkedSlots(sizes, format, gpu.maxBindingBytes);
  const experts = await SyntheticExperts.create(gpu, {
    sizes,
    format,
    numSlots,
    tokens,
    topK: numSlots,
    batches: 1,
  });
  const sums = allocate(gpu, "conformance sums", tokens * sizes.hiddenSize * 4, STORAGE);
  try {
    const { gateUp, down } = await experts.bind(await compileHalves(gpu, group, kernels));
    const end = combine(sizes.hiddenSize);
    const encoder = gpu.device.createCommandEncoder();
    const pass = encoder.beginComputePass();
    for (const encode of [...gateUp, ...down]) encode(pass);
    experts.bindCombine(await compileKernel(gpu, end), sums)(pass);
    pass.end();
    gpu.device.queue.submit([encoder.finish()]);
    const inner = await experts.read("gateUp");
    const results = await experts.read("down");
    const combined = await readFloats(gpu, sums, tokens * sizes.hiddenSize);
    return [
      {
        kernel: kernels.gateUp.label,
        error: worst(gateUpErrors(sizes, format, numSlots, inner)),
        limit,
      },
      {
        kernel: kernels.down.label,
        error: worst(downErrors(sizes, format, numSlots, inner, results)),
        limit,
      },
      {
        kernel: end.label,
        error: worst(combineErrors(sizes.hiddenSize, numSlots, results, combined)),
        limit: EXACT,
      },
    ];
  } finally {
    experts.destroy();
    sums.destroy();
  }
}

/** What a conformance run found. */
export interface Conformance {
  /** The largest error of any kernel. */
  readonly tolerance: number;
  readonly kernels: readonly KernelConformance[];
}

/** Runs every kernel in every format. Rejects with ConformanceError naming kernel, error and limit; KernelError, OutOfDeviceMemoryError. */
export async function checkConformance(
  gpu: Gpu,
  sizes: ExpertSizes,
  formats: readonly ExpertFormat[],
  { regimes }: ExpertKernels,
): Promise<Conformance> {
  const kernels: KernelConformance[] = [];
  for (const format of formats) {
    for (const regime of regimes) kernels.push(...(await checkRegime(gpu, sizes, format, regime)));
  }
  for (const { kernel, error, limit } of kernels) {
    if (!(error <= limit)) throw new ConformanceError(kernel, gpu.adapter, error, limit);
  }
  return { tolerance: worst(kernels.map(({ error }) => error)), kernels };
}
