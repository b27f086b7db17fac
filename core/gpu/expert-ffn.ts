/** Routed experts on a GPU: weights in slots, per layer, and the kernels over them. Encodes only; who submits is the caller's business. */

import {
  checkPacked,
  type ExpertSizes,
  type ExpertWeights,
  NO_SLOT,
  slotFormat,
  type WeightsDtype,
} from "../expert-device.ts";
import { allocate, type Gpu, STORAGE, write } from "./device.ts";
import { type Binding, type BoundKernel, compileKernel, type CompiledKernel } from "./kernel.ts";
import { combine } from "./kernels/combine.ts";
import type { StepSizes } from "./kernels/counts.ts";
import { gateUp } from "./kernels/gate-up.ts";
import { groupBySlot, MAX_SLOTS } from "./kernels/group-by-slot.ts";
import { linear } from "./kernels/linear.ts";
import { GROUP_STRIDE, type Lookup, maxGroupedTiles } from "./kernels/tile.ts";
import type { ExpertFormat } from "../expert-format.ts";
import { expertBytes, packExpert, type PackedExpert } from "../weights.ts";

/** Buffers that the experts read and write; their owner makes them. */
export interface ExpertBuffers {
  /** StepSizes as the kernels read them. */
  readonly counts: GPUBuffer;
  /** Hidden states f32 [maxRows, hiddenSize]. */
  readonly rows: GPUBuffer;
  /** Routing u32 [maxRows, topK, 2] (slot or NO_SLOT, weight bits) of a layer. */
  readonly routing: (layer: number) => Binding;
  /** Results f32 [maxRows, hiddenSize]. */
  readonly sums: GPUBuffer;
  /** Rows · topK at most. */
  readonly maxPairs: number;
}

/** A layer has more experts than the kernels sort rows by. */
export class SlotLimitError extends Error {
  override readonly name = "SlotLimitError";
}

/** Pairs per slot from which sorting the pairs by slot saves more weight reads than it costs. */
export const GROUPED_FROM = 4;

const DIRECT: Lookup = { kind: "direct", rows: 1 };
const GROUPED: Lookup = { kind: "grouped", rows: 4 };

interface Layer {
  readonly numSlots: number;
  readonly formats: readonly ExpertFormat[];
  readonly loaded: boolean[];
  readonly gateUp: GPUBuffer;
  readonly down: GPUBuffer;
  readonly direct: readonly BoundKernel<StepSizes>[];
  readonly grouped: readonly BoundKernel<StepSizes>[];
}

/** Expert weights of any number of layers on one device. */
export class GpuExpertFfn {
  readonly #gpu: Gpu;
  readonly #sizes: ExpertSizes;
  readonly #dtype: WeightsDtype;
  readonly #io: ExpertBuffers;
  readonly #kernels: Kernels;
  readonly #tiles: GPUBuffer;
  readonly #inner: GPUBuffer;
  readonly #pairs: GPUBuffer;
  readonly #layers = new Map<number, Layer>();

  private constructor(
    gpu: Gpu,
    sizes: ExpertSizes,
    dtype: WeightsDtype,
    io: ExpertBuffers,
    kernels: Kernels,
  ) {
    this.#gpu = gpu;
    this.#sizes = sizes;
    this.#dtype = dtype;
    this.#io = io;
    this.#kernels = kernels;
    const f32 = (label: string, count: number) => allocate(gpu, label, count * 4, STORAGE);
    this.#tiles = f32("expert tiles", maxGroupedTiles(io.maxPairs, 1, MAX_SLOTS) * GROUP_STRIDE);
    this.#inner = f32("expert inner states", io.maxPairs * sizes.expertIntermediateSize);
    this.#pairs = f32("expert results", io.maxPairs * sizes.hiddenSize);
  }

  /** Compiles the kernels. Rejects with KernelError. */
  static async create(
    gpu: Gpu,
    sizes: ExpertSizes,
    formats: readonly ExpertFormat[],
    io: ExpertBuffers,
  ): Promise<GpuExpertFfn> {
    const [dtype] = formats;
    if (formats.length > 1 || (dtype !== "f16" && dtype !== "f32")) {
      throw new RangeError(`experts in ${formats.join(", ")}: a GPU keeps them in f16 or f32`);
    }
    if (sizes.expertBias || sizes.activation.kind !== "silu") {
      throw new RangeError("experts with biases or another activation than silu on a GPU");
    }
    return new GpuExpertFfn(gpu, sizes, dtype, io, await compileKernels(gpu, sizes, dtype));
  }

  /** Makes empty slots for a layer. Throws RangeError, OutOfDeviceMemoryError. */
  allocate(layer: number, formats: readonly ExpertFormat[]): void {
    const numSlots = formats.length;
    for (const format of formats) {
      if (format !== this.#dtype) throw new RangeError(`layer ${layer}: a slot in ${format}`);
    }
    if (this.#layers.has(layer)) throw new RangeError(`layer ${layer} already has slots`);
    if (numSlots > MAX_SLOTS) {
      throw new SlotLimitError(
        `layer ${layer}: ${numSlots} experts on one GPU, at most ${MAX_SLOTS}`,
      );
    }
    const bytes = this.#projectionBytes();
    const label = (part: string) => `layer ${layer}: ${part} weights of ${numSlots} experts`;
    const gateUpWeights = allocate(this.#gpu, label("gate and up"), numSlots * 2 * bytes, STORAGE);
    const down = allocate(this.#gpu, label("down"), numSlots * bytes, STORAGE);
    const { counts, rows, sums } = this.#io;
    const routing = this.#io.routing(layer);
    const k = this.#kernels;
    const end = k.combine.bind(counts, this.#pairs, routing, sums);
    this.#layers.set(layer, {
      numSlots,
      formats: [...formats],
      loaded: Array.from({ length: numSlots }, () => false),
      gateUp: gateUpWeights,
      down,
      direct: [
        k.directGateUp.bind(counts, rows, gateUpWeights, this.#inner, routing),
        k.directDown.bind(counts, this.#inner, down, this.#pairs, routing),
        end,
      ],
      grouped: [
        k.group.bind(counts, routing, this.#tiles),
        k.groupedGateUp.bind(counts, rows, gateUpWeights, this.#inner, this.#tiles),
        k.groupedDown.bind(counts, this.#inner, down, this.#pairs, this.#tiles),
        end,
      ],
    });
  }

  /** Puts an expert into a slot. Throws RangeError where slot or shape does not fit, WeightOverflowError. */
  load(layer: number, slot: number, weights: ExpertWeights): void {
    const format = slotFormat(layer, slot, this.#layer(layer).formats);
    const name = `layer ${layer} slot ${slot}`;
    this.loadPacked(layer, slot, packExpert(name, weights, this.#sizes, format));
  }

  /** Puts a packed expert into a slot. Throws RangeError where slot or format does not fit. */
  loadPacked(layer: number, slot: number, expert: PackedExpert): void {
    const of = this.#layer(layer);
    checkPacked(`layer ${layer} slot ${slot}`, expert, slotFormat(layer, slot, of.formats));
    const { gate, up, down } = expert;
    const bytes = this.#projectionBytes();
    write(this.#gpu, of.gateUp, slot * 2 * bytes, gate.weights);
    write(this.#gpu, of.gateUp, (slot * 2 + 1) * bytes, up.weights);
    write(this.#gpu, of.down, slot * bytes, down.weights);
    of.loaded[slot] = true;
  }

  /** Whether a slot holds an expert. Throws RangeError where the layer has no slots. */
  holds(layer: number, slot: number): boolean {
    return this.#layer(layer).loaded[slot];
  }

  numSlots(layer: number): number {
    return this.#layer(layer).numSlots;
  }

  /** Encodes the layer's experts over `sizes.tokens` rows; the counts must hold the same sizes when it runs. */
  encode(pass: GPUComputePassEncoder, layer: number, sizes: StepSizes): void {
    const of = this.#layer(layer);
    const grouped = sizes.tokens * sizes.topK >= GROUPED_FROM * of.numSlots;
    for (const kernel of grouped ? of.grouped : of.direct) kernel.encode(pass, sizes);
  }

  /** Encodes both ways of running a layer, so that the driver has compiled them before the first real rows. */
  encodeAll(pass: GPUComputePassEncoder, layer: number, sizes: StepSizes): void {
    const of = this.#layer(layer);
    for (const kernel of [...of.direct, ...of.grouped]) kernel.encode(pass, sizes);
  }

  residentBytes(): number {
    let slots = 0;
    for (const layer of this.#layers.values()) slots += layer.numSlots;
    return slots * expertBytes(this.#sizes, this.#dtype);
  }

  free(layer: number): void {
    const of = this.#layers.get(layer);
    of?.gateUp.destroy();
    of?.down.destroy();
    this.#layers.delete(layer);
  }

  close(): void {
    for (const layer of this.#layers.keys()) this.free(layer);
    for (const buffer of [this.#tiles, this.#inner, this.#pairs]) buffer.destroy();
  }

  #projectionBytes(): number {
    return expertBytes(this.#sizes, this.#dtype) / 3;
  }

  #layer(layer: number): Layer {
    const of = this.#layers.get(layer);
    if (of === undefined) throw new RangeError(`layer ${layer} has no slots on this device`);
    return of;
  }
}

/** Routing as the kernels read it: (slot, weight bits) per pair. */
export function interleaveRouting(
  slots: Uint32Array,
  weights: Float32Array,
  out: Uint32Array,
): void {
  const bits = new Uint32Array(weights.buffer, weights.byteOffset, weights.length);
  for (let i = 0; i < slots.length; i++) {
    out[2 * i] = slots[i];
    out[2 * i + 1] = slots[i] === NO_SLOT ? 0 : bits[i];
  }
}

type Kernels = Awaited<ReturnType<typeof compileKernels>>;

async function compileKernels(gpu: Gpu, sizes: ExpertSizes, weights: WeightsDtype) {
  const { hiddenSize, expertIntermediateSize: intermediateSize } = sizes;
  const up = (lookup: Lookup) =>
    compileKernel(gpu, gateUp({ hiddenSize, intermediateSize, weights, lookup }));
  const down = (lookup: Lookup): Promise<CompiledKernel<StepSizes>> =>
    compileKernel(
      gpu,
      linear({ k: intermediateSize, n: hiddenSize, weights, lookup, epilogue: "store" }),
    );
  return {
    group: await compileKernel(gpu, groupBySlot()),
    directGateUp: await up(DIRECT),
    directDown: await down(DIRECT),
    groupedGateUp: await up(GROUPED),
    groupedDown: await down(GROUPED),
    combine: await compileKernel(gpu, combine(hiddenSize)),
  };
}
