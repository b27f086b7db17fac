/** Experts of random weights on a device, with balanced routing over them: what kernels are measured on. */

import type { ExpertSizes } from "../expert-device.ts";
import { type ExpertFormat, rowScaleWords, rowWords } from "../expert-format.ts";
import { inTime } from "./deadline.ts";
import { allocate, type Gpu, READ_BACK, STORAGE, UNIFORM, upload } from "./device.ts";
import type { BankKernels } from "./expert-kernels.ts";
import { type CompiledKernel, compileKernel } from "./kernel.ts";
import type { Encode } from "./kernel-timing.ts";
import { COUNTS_BYTES, countsData, type StepSizes } from "./kernels/counts.ts";
import { fill } from "./kernels/fill.ts";
import { groupBySlot } from "./kernels/group-by-slot.ts";
import { type GroupRows, groupStride, maxGroupedTiles } from "./kernels/tile.ts";
import { mapForReading } from "./polling.ts";

/** Bits of random words that make weights and scales of about 0.2, by format: what is kept and what is set. */
export const WEIGHT_BITS: Readonly<Record<ExpertFormat, readonly [mask: number, set: number]>> = {
  f32: [0x807fffff, 0x3e000000],
  f16: [0x83ff83ff, 0x30003000],
  int8: [0xffffffff, 0],
  "int4-g32": [0xffffffff, 0],
  "int4-g64": [0xffffffff, 0],
  "int4-g128": [0xffffffff, 0],
  mxfp4: [0xffffffff, 0],
};

/** Scales of about 1/500 of int8, 1/32 of int4 and 2^-5 of mxfp4. */
export function scaleBits(format: ExpertFormat): readonly [mask: number, set: number] {
  if (format === "int8") return [0x007fffff, 0x3b000000];
  if (format === "mxfp4") return [0x01010101, 0x7a7a7a7a];
  return [0x03ff03ff, 0x28002800];
}

/** A buffer of so many words of random bits. */
export async function randomBuffer(
  gpu: Gpu,
  label: string,
  words: number,
  [mask, set]: readonly [mask: number, set: number],
): Promise<GPUBuffer> {
  const buffer = allocate(gpu, label, words * 4, STORAGE);
  try {
    const kernel = (await compileKernel(gpu, fill(mask, set))).bind(buffer);
    const encoder = gpu.device.createCommandEncoder();
    const pass = encoder.beginComputePass();
    kernel.encode(pass, { words: Math.max(4, words) });
    pass.end();
    gpu.device.queue.submit([encoder.finish()]);
    return buffer;
  } catch (error) {
    buffer.destroy();
    throw error;
  }
}

/** Random weights of a matrix in a format. */
export function randomWeights(
  gpu: Gpu,
  format: ExpertFormat,
  rows: number,
  k: number,
): Promise<GPUBuffer> {
  const words = rows * rowWords(format, k);
  return randomBuffer(gpu, `${words} words`, words, WEIGHT_BITS[format]);
}

/** Random inputs in ±[0.125, 0.25), rows of k f32. */
export function randomRows(gpu: Gpu, rows: number, k: number): Promise<GPUBuffer> {
  return randomBuffer(gpu, `${rows} rows of ${k}`, rows * k, WEIGHT_BITS.f32);
}

/** The first floats of a buffer, on the host. Rejects with DeviceTimeoutError. */
export async function readFloats(
  gpu: Gpu,
  buffer: GPUBuffer,
  count: number,
): Promise<Float32Array> {
  const staging = allocate(gpu, "read-back", count * 4, READ_BACK);
  const encoder = gpu.device.createCommandEncoder();
  encoder.copyBufferToBuffer(buffer, 0, staging, 0, count * 4);
  gpu.device.queue.submit([encoder.finish()]);
  try {
    await inTime("a read-back", mapForReading(staging, count * 4));
    return new Float32Array(staging.getMappedRange(0, count * 4).slice(0));
  } finally {
    staging.destroy();
  }
}

/** What is measured: a layer of slots in one bank, and batches of one size over it. */
export interface SyntheticOptions {
  readonly sizes: ExpertSizes;
  readonly format: ExpertFormat;
  readonly numSlots: number;
  readonly tokens: number;
  readonly topK: number;
  /** Batches that take turns, each over other slots as far as there are enough. */
  readonly batches: number;
}

/** Compiled kernels of both halves, with the rows of the tiles that they read. */
export interface MeasuredKernels {
  readonly group: GroupRows | undefined;
  readonly gateUp: CompiledKernel<StepSizes>;
  readonly down: CompiledKernel<StepSizes>;
}

/** Compiles both halves. Rejects with KernelError. */
export async function compileHalves(
  gpu: Gpu,
  group: GroupRows | undefined,
  { gateUp, down }: BankKernels,
): Promise<MeasuredKernels> {
  return {
    group,
    gateUp: await compileKernel(gpu, gateUp),
    down: await compileKernel(gpu, down),
  };
}

/** One run of each part of an expert FFN per batch. */
export interface ExpertRuns {
  /** Sorts the pairs; empty where the kernels read the routing itself. */
  readonly group: readonly Encode[];
  readonly gateUp: readonly Encode[];
  readonly down: readonly Encode[];
}

/** Balanced routing: pair p of batch b is of slot p + b · pairs, around all slots; weights are 1. */
function balancedRouting(
  { tokens, topK, numSlots }: Pick<SyntheticOptions, "tokens" | "topK" | "numSlots">,
  batch: number,
): Uint32Array<ArrayBuffer> {
  const pairs = tokens * topK;
  const routing = new Uint32Array(2 * pairs);
  for (let pair = 0; pair < pairs; pair++) {
    routing[2 * pair] = (pair + batch * pairs) % numSlots;
    routing[2 * pair + 1] = 0x3f800000;
  }
  return routing;
}

interface SyntheticBuffers {
  readonly counts: GPUBuffer;
  readonly x: GPUBuffer;
  readonly gateUp: GPUBuffer;
  readonly gateUpScales: GPUBuffer;
  readonly down: GPUBuffer;
  readonly downScales: GPUBuffer;
  readonly biases: GPUBuffer;
  readonly inner: GPUBuffer;
  readonly results: GPUBuffer;
  readonly places: GPUBuffer;
}

/** Experts to measure on. */
export class SyntheticExperts {
  readonly step: StepSizes;
  readonly #gpu: Gpu;
  readonly #options: SyntheticOptions;
  readonly #buffers: SyntheticBuffers;
  readonly #routings: readonly GPUBuffer[];
  /** Tiles of each batch, by their rows. */
  readonly #tiles = new Map<GroupRows, readonly GPUBuffer[]>();

  private constructor(
    gpu: Gpu,
    options: SyntheticOptions,
    buffers: SyntheticBuffers,
    routings: readonly GPUBuffer[],
  ) {
    const { tokens, topK, numSlots } = options;
    this.step = { tokens, samples: 0, topK, numSlots };
    this.#gpu = gpu;
    this.#options = options;
    this.#buffers = buffers;
    this.#routings = routings;
  }

  /** Allocates and fills. Rejects with OutOfDeviceMemoryError where a bank does not fit one binding, with nothing left allocated. */
  static async create(gpu: Gpu, options: SyntheticOptions): Promise<SyntheticExperts> {
    const { sizes, format, numSlots, tokens, topK } = options;
    const { hiddenSize: h, expertIntermediateSize: i, expertBias } = sizes;
    const pairs = tokens * topK;
    const gateUpRows = numSlots * 2 * i;
    const made: GPUBuffer[] = [];
    const keep = (buffer: GPUBuffer) => {
      made.push(buffer);
      return buffer;
    };
    const scales = async (rows: number, k: number) =>
      keep(await randomBuffer(gpu, "scales", rows * rowScaleWords(format, k), scaleBits(format)));
    try {
      const counts = keep(allocate(gpu, "counts", COUNTS_BYTES, UNIFORM));
      gpu.device.queue.writeBuffer(counts, 0, countsData({ tokens, samples: 0, topK, numSlots }));
      const slots = Uint32Array.from({ length: numSlots }, (_, slot) => slot);
      const buffers = {
        counts,
        x: keep(await randomRows(gpu, tokens, h)),
        gateUp: keep(await randomWeights(gpu, format, gateUpRows, h)),
        gateUpScales: await scales(gateUpRows, h),
        down: keep(await randomWeights(gpu, format, numSlots * h, i)),
        downScales: await scales(numSlots * h, i),
        biases: keep(await randomRows(gpu, numSlots, expertBias ? Math.max(2 * i, h) : 1)),
        inner: keep(allocate(gpu, "inner", pairs * i * 4, STORAGE)),
        results: keep(allocate(gpu, "results", pairs * h * 4, STORAGE)),
        places: keep(upload(gpu, "places", slots)),
      };
      const routings = Array.from({ length: options.batches }, (_, batch) =>
        keep(upload(gpu, `routing ${batch}`, balancedRouting(options, batch))),
      );
      return new SyntheticExperts(gpu, options, buffers, routings);
    } catch (error) {
      for (const buffer of made) buffer.destroy();
      throw error;
    }
  }

  /** Binds kernels to every batch, with the pairs sorted as the kernels want them. Rejects with KernelError. */
  async bind(kernels: MeasuredKernels): Promise<ExpertRuns> {
    const { group: rows, gateUp, down } = kernels;
    const b = this.#buffers;
    const group = rows === undefined ? [] : await this.#sort(rows);
    const found = (rows === undefined ? undefined : this.#tiles.get(rows)) ?? this.#routings;
    const runs = (half: "gateUp" | "down") =>
      found.map((tiles): Encode => {
        const bound =
          half === "gateUp"
            ? gateUp.bind(
                b.counts,
                b.x,
                b.gateUp,
                b.inner,
                tiles,
                b.gateUpScales,
                b.places,
                b.biases,
              )
            : down.bind(
                b.counts,
                b.inner,
                b.down,
                b.results,
                tiles,
                b.downScales,
                b.places,
                b.biases,
              );
        return (pass) => bound.encode(pass, this.step);
      });
    return { group, gateUp: runs("gateUp"), down: runs("down") };
  }

  /** Binds the kernel that adds up a row's pairs, over the first batch: the result is in `sums`. */
  bindCombine(kernel: CompiledKernel<StepSizes>, sums: GPUBuffer): Encode {
    const { counts, results } = this.#buffers;
    const bound = kernel.bind(counts, results, this.#routings[0], sums);
    return (pass) => bound.encode(pass, this.step);
  }

  /** What one half has left for each pair, on the host: [numPairs, intermediateSize] or [numPairs, hiddenSize]. */
  async read(half: "gateUp" | "down"): Promise<Float32Array> {
    const { sizes, tokens, topK } = this.#options;
    const width = half === "gateUp" ? sizes.expertIntermediateSize : sizes.hiddenSize;
    const buffer = this.#buffers[half === "gateUp" ? "inner" : "results"];
    return readFloats(this.#gpu, buffer, tokens * topK * width);
  }

  destroy(): void {
    for (const buffer of Object.values<GPUBuffer>({ ...this.#buffers })) buffer.destroy();
    for (const buffer of [...this.#routings, ...[...this.#tiles.values()].flat()]) buffer.destroy();
  }

  async #sort(rows: GroupRows): Promise<Encode[]> {
    const { tokens, topK, numSlots } = this.#options;
    const words = maxGroupedTiles(tokens, topK, numSlots, rows) * groupStride(rows);
    const kernel = await compileKernel(this.#gpu, groupBySlot(rows));
    const tiles =
      this.#tiles.get(rows) ??
      this.#routings.map(() => allocate(this.#gpu, "tiles", words * 4, STORAGE));
    this.#tiles.set(rows, tiles);
    const runs = tiles.map((buffer, batch): Encode => {
      const bound = kernel.bind(this.#buffers.counts, this.#routings[batch], buffer);
      return (pass) => bound.encode(pass, this.step);
    });
    const encoder = this.#gpu.device.createCommandEncoder();
    const pass = encoder.beginComputePass();
    for (const run of runs) run(pass);
    pass.end();
    this.#gpu.device.queue.submit([encoder.finish()]);
    return runs;
  }
}
