/** Products with one matrix (attention's projections, gate, lm_head), each candidate timed over several copies of the weights. */

import { allocate, type Gpu, STORAGE, UNIFORM } from "../../core/gpu/device.ts";
import { compileKernel, type Kernel } from "../../core/gpu/kernel.ts";
import type { Encode, KernelTimer } from "../../core/gpu/kernel-timing.ts";
import { COUNTS_BYTES, countsData, type StepSizes } from "../../core/gpu/kernels/counts.ts";
import { gemmLinear } from "../../core/gpu/kernels/gemm-linear.ts";
import { gemmName, type GemmShape } from "../../core/gpu/kernels/gemm.ts";
import { linear } from "../../core/gpu/kernels/linear.ts";
import { matvecLinear } from "../../core/gpu/kernels/matvec-linear.ts";
import { matvecName, type MatvecShape } from "../../core/gpu/kernels/matvec.ts";
import { randomRows, randomWeights } from "../../core/gpu/synthetic-experts.ts";
import type { Product } from "./floors.ts";

/** A timed candidate. */
export interface Timed {
  readonly name: string;
  readonly seconds: number;
}

/** Copies of the weights that take turns, so that caches do not flatter: as many as make up the bytes, within reason. */
function copiesFor(bytes: number, atLeast: number): number {
  return Math.max(1, Math.min(32, Math.ceil(atLeast / bytes)));
}

function kernelsFor(gpu: Gpu, { k, n }: Product, rows: number): [string, Kernel<StepSizes>][] {
  const sizes = { k, n, format: "f16", epilogue: "store" } as const;
  const reduce = gpu.offers.subgroups ? "subgroup" : "workgroup";
  const tileRows = rows < 2 ? 1 : rows < 4 ? 2 : rows < 8 ? 4 : 8;
  const matvecs = (
    [
      [64, 4],
      [32, 4],
      [128, 4],
      [64, 2],
    ] as const
  ).map(([threads, columns]): [string, Kernel<StepSizes>] => {
    const shape: MatvecShape = { threads, columns, reduce };
    const lookup = { kind: "tokens", rows: tileRows } as const;
    return [`${matvecName(shape)} ×${tileRows}`, matvecLinear({ ...sizes, lookup, shape })];
  });
  const gemms = (
    [
      [
        [8, 8],
        [4, 4],
      ],
      [
        [16, 16],
        [4, 4],
      ],
      [
        [16, 8],
        [8, 8],
      ],
    ] as const
  ).map(([threads, block]): [string, Kernel<StepSizes>] => {
    const shape: GemmShape = { threads, block, tile: "f32" };
    return [gemmName(shape), gemmLinear({ ...sizes, rows: "tokens", shape })];
  });
  const plainRows = rows < 4 ? 1 : 4;
  const lookup = { kind: "tokens", rows: plainRows } as const;
  const plain: [string, Kernel<StepSizes>] = [
    `plain ×${plainRows}`,
    linear({ k, n, weights: "f16", lookup, epilogue: "store" }),
  ];
  if (gpu.offers.software)
    return [plain, ...matvecs.slice(0, 1), ...(rows < 16 ? [] : gemms.slice(0, 1))];
  return rows < 16 ? [...matvecs, plain] : [...gemms, ...matvecs.slice(0, 1), plain];
}

/** The fastest candidate. Throws OutOfDeviceMemoryError where the weights do not fit one binding. */
export async function timePlain(
  gpu: Gpu,
  timer: KernelTimer,
  product: Product,
  rows: number,
  options: { readonly seconds: number; readonly rotateBytes: number },
): Promise<Timed> {
  const step: StepSizes = { tokens: rows, samples: 0, topK: 1, numSlots: 1 };
  const { k, n } = product;
  const buffers: GPUBuffer[] = [];
  const keep = (buffer: GPUBuffer) => {
    buffers.push(buffer);
    return buffer;
  };
  try {
    const counts = keep(allocate(gpu, "counts", COUNTS_BYTES, UNIFORM));
    gpu.device.queue.writeBuffer(counts, 0, countsData(step));
    const weights: GPUBuffer[] = [];
    for (let i = copiesFor(n * k * 2, options.rotateBytes); i > 0; i--) {
      weights.push(keep(await randomWeights(gpu, "f16", n, k)));
    }
    const x = keep(await randomRows(gpu, rows, k));
    const out = keep(allocate(gpu, "out", rows * n * 4, STORAGE));
    let best: Timed = { name: "none", seconds: Number.POSITIVE_INFINITY };
    for (const [name, kernel] of kernelsFor(gpu, product, rows)) {
      const compiled = await compileKernel(gpu, kernel);
      const runs = weights.map((of): Encode => {
        const bound = compiled.bind(counts, x, of, out);
        return (pass) => bound.encode(pass, step);
      });
      const seconds = await timer.time(runs, options);
      if (seconds < best.seconds) best = { name, seconds };
    }
    return best;
  } finally {
    for (const buffer of buffers) buffer.destroy();
  }
}
