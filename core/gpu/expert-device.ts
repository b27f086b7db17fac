/** An ExpertDevice on a GPU: what a shard computes with. */

import { mapForReading } from "./polling.ts";
import {
  checkRun,
  type ExpertDevice,
  type ExpertSizes,
  type NewSlots,
  NO_SLOT,
  type StoredExpert,
} from "../expert-device.ts";
import type { ExpertFormat, PackedExpert } from "../expert-format.ts";
import { allocate, type Gpu, READ_BACK, settleWrites, STORAGE, UNIFORM } from "./device.ts";
import { type ExpertFfnOptions, GpuExpertFfn, interleaveRouting } from "./expert-ffn.ts";
import { warmUpExperts } from "./expert-warm-up.ts";
import { COUNTS_BYTES, countsData } from "./kernels/counts.ts";

/** Rows of one run at most. */
const MAX_ROWS = 4096;

/** Rows · topK that the device works on at once at most, and the bytes that their results may take. */
const MAX_PAIRS = 8192;
const MAX_PAIR_BYTES = 64 * 2 ** 20;

/** Layer number that no model has, for compiling ahead. */
const WARM_UP_LAYER = -1;

/** Rows · topK that a device works on at once. */
export function pairsAtOnce({ hiddenSize }: ExpertSizes): number {
  return Math.min(MAX_PAIRS, Math.floor(MAX_PAIR_BYTES / (4 * hiddenSize)));
}

/** Creates an ExpertDevice for slots of these formats whose kernels the driver has compiled. The device stays the caller's. Rejects with KernelError, OutOfDeviceMemoryError, DeviceTimeoutError, with nothing left allocated. */
export async function createGpuExpertDevice(
  gpu: Gpu,
  sizes: ExpertSizes,
  formats: readonly ExpertFormat[],
  options: ExpertFfnOptions = {},
): Promise<ExpertDevice> {
  const maxPairs = pairsAtOnce(sizes);
  const rowBytes = maxPairs * sizes.hiddenSize * 4;
  const made: { destroy(): void }[] = [];
  const make = (label: string, bytes: number, usage: number) => {
    const buffer = allocate(gpu, label, bytes, usage);
    made.push(buffer);
    return buffer;
  };
  try {
    const counts = make("expert counts", COUNTS_BYTES, UNIFORM);
    const rows = make("expert rows", rowBytes, STORAGE);
    const routing = make("expert routing", maxPairs * 8, STORAGE);
    const sums = make("expert sums", rowBytes, STORAGE);
    const staging = make("expert read-back", rowBytes, READ_BACK);
    const io = { counts, rows, routing: () => routing, sums, maxPairs };
    const ffn = await GpuExpertFfn.create(gpu, sizes, formats, io, options);
    made.push({ destroy: () => ffn.close() });
    const buffers = { counts, rows, routing, sums, staging, maxPairs };
    const device = new GpuExpertDevice(gpu, sizes, ffn, buffers);
    await device.warmUp(formats);
    return device;
  } catch (error) {
    for (const one of made) one.destroy();
    throw error;
  }
}

interface RunBuffers {
  readonly counts: GPUBuffer;
  readonly rows: GPUBuffer;
  readonly routing: GPUBuffer;
  readonly sums: GPUBuffer;
  readonly staging: GPUBuffer;
  readonly maxPairs: number;
}

class GpuExpertDevice implements ExpertDevice {
  readonly adapter: string;
  readonly maxRows = MAX_ROWS;
  readonly lost: Promise<string>;
  readonly #gpu: Gpu;
  readonly #sizes: ExpertSizes;
  readonly #ffn: GpuExpertFfn;
  readonly #buffers: RunBuffers;
  readonly #routing: Uint32Array<ArrayBuffer>;
  #tail: Promise<unknown> = Promise.resolve();
  /** Called and not answered. */
  #runs = 0;
  #closed = false;

  constructor(gpu: Gpu, sizes: ExpertSizes, ffn: GpuExpertFfn, buffers: RunBuffers) {
    this.adapter = gpu.adapter;
    this.lost = gpu.lost;
    this.#gpu = gpu;
    this.#sizes = sizes;
    this.#ffn = ffn;
    this.#buffers = buffers;
    this.#routing = new Uint32Array(buffers.maxPairs * 2);
  }

  /** Runs every kernel once on an empty expert: drivers compile at the first run, which a dispatch must not wait for. */
  async warmUp(formats: readonly ExpertFormat[]): Promise<void> {
    this.#ffn.allocate(WARM_UP_LAYER, formats);
    const sizes = { tokens: 1, samples: 0, topK: 1, numSlots: formats.length };
    this.#gpu.device.queue.writeBuffer(this.#buffers.routing, 0, new Uint32Array(2));
    await warmUpExperts(this.#gpu, this.#ffn, [WARM_UP_LAYER], this.#buffers.counts, sizes);
    this.#ffn.free(WARM_UP_LAYER);
  }

  allocate(layer: number, formats: readonly ExpertFormat[]): void {
    this.#ffn.allocate(layer, formats);
  }

  load(layer: number, slot: number, weights: StoredExpert): void {
    this.#ffn.load(layer, slot, weights);
  }

  loadPacked(layer: number, slot: number, expert: PackedExpert): void {
    this.#ffn.loadPacked(layer, slot, expert);
  }

  loadParts(
    layer: number,
    slot: number,
    expert: PackedExpert,
    partBytes: number,
  ): Generator<number, void> {
    return this.#ffn.loadParts(layer, slot, expert, partBytes);
  }

  read(layer: number, slot: number): Promise<PackedExpert> {
    return this.#ffn.read(layer, slot);
  }

  rearrange(
    layer: number,
    formats: readonly ExpertFormat[],
    from: readonly number[],
  ): Promise<NewSlots> {
    return this.#ffn.rearrange(layer, formats, from, () => this.#runs);
  }

  settled(): Promise<void> {
    return settleWrites(this.#gpu);
  }

  run(
    layer: number,
    rows: Float32Array,
    slots: Uint32Array,
    weights: Float32Array,
  ): Promise<Float32Array> {
    this.#runs++;
    const result = this.#tail
      .then(() => this.#runNow(layer, rows, slots, weights))
      .finally(() => this.#runs--);
    this.#tail = result.catch(() => {});
    return result;
  }

  residentBytes(): number {
    return this.#ffn.residentBytes();
  }

  free(layer: number): void {
    this.#ffn.free(layer);
  }

  close(): void {
    this.#closed = true;
    this.#ffn.close();
    const { counts, rows, routing, sums, staging } = this.#buffers;
    for (const buffer of [counts, rows, routing, sums, staging]) buffer.destroy();
  }

  async #runNow(
    layer: number,
    rows: Float32Array,
    slots: Uint32Array,
    weights: Float32Array,
  ): Promise<Float32Array> {
    if (this.#closed) throw new Error(`the expert device ${this.adapter} is closed`);
    const { hiddenSize } = this.#sizes;
    const topK = checkRun(layer, rows.length / hiddenSize, slots, weights, {
      maxRows: MAX_ROWS,
      holds: (slot) => this.#ffn.holds(layer, slot),
    });
    const { maxPairs } = this.#buffers;
    if (topK > maxPairs) {
      throw new RangeError(`layer ${layer}: ${topK} experts per row, at most ${maxPairs}`);
    }
    const rowsAtOnce = Math.floor(maxPairs / topK);
    if (rows.length <= rowsAtOnce * hiddenSize) {
      return this.#runPart(layer, topK, rows, slots, weights);
    }
    const sums = new Float32Array(rows.length);
    for (let from = 0; from * hiddenSize < rows.length; from += rowsAtOnce) {
      const to = from + rowsAtOnce;
      const part = await this.#runPart(
        layer,
        topK,
        rows.subarray(from * hiddenSize, to * hiddenSize),
        slots.subarray(from * topK, to * topK),
        weights.subarray(from * topK, to * topK),
      );
      sums.set(part, from * hiddenSize);
    }
    return sums;
  }

  async #runPart(
    layer: number,
    topK: number,
    rows: Float32Array,
    slots: Uint32Array,
    weights: Float32Array,
  ): Promise<Float32Array> {
    const { device } = this.#gpu;
    const buffers = this.#buffers;
    const tokens = rows.length / this.#sizes.hiddenSize;
    const numSlots = this.#ffn.numSlots(layer);
    // Slots may be many more than the rows use: copies at rest, experts of an epoch to come.
    const sizes = {
      tokens,
      samples: 0,
      topK,
      numSlots,
      pairsPerSlot: pairsPerSlot(slots, numSlots),
    };
    interleaveRouting(slots, weights, this.#routing);
    device.queue.writeBuffer(buffers.counts, 0, countsData(sizes));
    device.queue.writeBuffer(buffers.rows, 0, rows.buffer, rows.byteOffset, rows.byteLength);
    device.queue.writeBuffer(buffers.routing, 0, this.#routing, 0, slots.length * 2);
    const encoder = device.createCommandEncoder();
    const pass = encoder.beginComputePass();
    this.#ffn.encode(pass, layer, sizes);
    pass.end();
    encoder.copyBufferToBuffer(buffers.sums, 0, buffers.staging, 0, rows.byteLength);
    device.queue.submit([encoder.finish()]);
    await mapForReading(buffers.staging, rows.byteLength, tokens);
    const sums = new Float32Array(buffers.staging.getMappedRange(0, rows.byteLength).slice(0));
    buffers.staging.unmap();
    return sums;
  }
}

/** Rows of a slot that has any. */
function pairsPerSlot(slots: Uint32Array, numSlots: number): number {
  const seen = new Uint8Array(numSlots);
  let pairs = 0;
  let used = 0;
  for (const slot of slots) {
    if (slot === NO_SLOT) continue;
    pairs++;
    used += 1 - seen[slot];
    seen[slot] = 1;
  }
  return pairs / Math.max(1, used);
}
