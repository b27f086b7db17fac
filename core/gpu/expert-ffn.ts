/** Routed experts on a GPU: weights in slots, per layer, and the kernels over them. Encodes only; who submits is the caller's business. */

import {
  checkCommit,
  checkPacked,
  checkSources,
  type ExpertSizes,
  type NewSlots,
  type StoredExpert,
  NO_SLOT,
  slotFormat,
} from "../expert-device.ts";
import type { ExpertFormat, PackedExpert } from "../expert-format.ts";
import { expertBytes, packExpert } from "../weights.ts";
import { allocate, type Gpu, STORAGE } from "./device.ts";
import { type Bank, ExpertBanks, largestPart } from "./expert-banks.ts";
import {
  type ExpertKernels,
  groupKernel,
  plainExpertKernels,
  tileWords,
} from "./expert-kernels.ts";
import { type Binding, type BoundKernel, compileKernel, type CompiledKernel } from "./kernel.ts";
import { combine } from "./kernels/combine.ts";
import type { StepSizes } from "./kernels/counts.ts";
import { inputLoads } from "./kernels/shared-input.ts";
import { MAX_SLOTS } from "./kernels/group-by-slot.ts";

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

/** What a GPU's experts may be told apart from sizes and formats. */
export interface ExpertFfnOptions {
  /** Slots of a layer at most; MAX_SLOTS unless told otherwise, bounded by workgroup memory. */
  readonly maxSlots?: number;
  /** Bytes of one buffer of weights at most; as `bankBytesOf` unless told otherwise. */
  readonly bankBytes?: number;
  /** The kernels that compute; those that need nothing of an adapter unless told otherwise. */
  readonly kernels?: ExpertKernels;
}

interface Layer {
  readonly banks: ExpertBanks;
  /** By regime, in the order of a run. */
  readonly regimes: readonly (readonly BoundKernel<StepSizes>[])[];
}

/** Expert weights of any number of layers on one device. */
export class GpuExpertFfn {
  readonly #gpu: Gpu;
  readonly #sizes: ExpertSizes;
  readonly #io: ExpertBuffers;
  readonly #compiled: Compiled;
  readonly #maxSlots: number;
  readonly #bankBytes: number;
  /** By regime; undefined where pairs are not sorted. */
  readonly #tiles: readonly (GPUBuffer | undefined)[];
  readonly #inner: GPUBuffer;
  readonly #pairs: GPUBuffer;
  readonly #layers = new Map<number, Layer>();

  private constructor(
    gpu: Gpu,
    sizes: ExpertSizes,
    io: ExpertBuffers,
    compiled: Compiled,
    options: ExpertFfnOptions,
  ) {
    this.#gpu = gpu;
    this.#sizes = sizes;
    this.#io = io;
    this.#compiled = compiled;
    const maxSlots = options.maxSlots ?? MAX_SLOTS;
    this.#maxSlots = maxSlots;
    this.#bankBytes = options.bankBytes ?? bankBytesOf(gpu, sizes, compiled.formats);
    const made: GPUBuffer[] = [];
    const words = (label: string, count: number) => {
      const buffer = allocate(gpu, label, count * 4, STORAGE);
      made.push(buffer);
      return buffer;
    };
    try {
      this.#tiles = compiled.kernels.regimes.map(({ group }) =>
        group === undefined
          ? undefined
          : words("expert tiles", tileWords(group, io.maxPairs, maxSlots)),
      );
      this.#inner = words("expert inner states", io.maxPairs * sizes.expertIntermediateSize);
      this.#pairs = words("expert results", io.maxPairs * sizes.hiddenSize);
    } catch (error) {
      for (const buffer of made) buffer.destroy();
      throw error;
    }
  }

  /** Compiles the kernels for slots of these formats. Rejects with KernelError, OutOfDeviceMemoryError. */
  static async create(
    gpu: Gpu,
    sizes: ExpertSizes,
    formats: readonly ExpertFormat[],
    io: ExpertBuffers,
    options: ExpertFfnOptions = {},
  ): Promise<GpuExpertFfn> {
    const compiled = await compile(gpu, sizes, formats, options);
    return new GpuExpertFfn(gpu, sizes, io, compiled, options);
  }

  /** Makes empty slots for a layer, one per format. Throws RangeError, SlotLimitError, OutOfDeviceMemoryError. */
  allocate(layer: number, formats: readonly ExpertFormat[]): void {
    if (this.#layers.has(layer)) throw new RangeError(`layer ${layer} already has slots`);
    this.#checkFormats(layer, formats);
    const label = `layer ${layer}`;
    const banks = new ExpertBanks(this.#gpu, this.#sizes, label, formats, this.#bankBytes);
    this.#layers.set(layer, { banks, regimes: this.#bind(layer, banks) });
  }

  /**
   * As `ExpertDevice.rearrange`. What was submitted before `commit` computes by the old slots.
   * @param runs runs under way now, for `commit` to refuse
   */
  async rearrange(
    layer: number,
    formats: readonly ExpertFormat[],
    from: readonly number[],
    runs: () => number,
  ): Promise<NewSlots> {
    const old = this.#layers.get(layer);
    this.#checkFormats(layer, formats);
    checkSources(layer, formats, from, old?.banks.formats ?? []);
    const label = `layer ${layer}`;
    const banks = await ExpertBanks.tried(this.#gpu, this.#sizes, label, formats, this.#bankBytes);
    const prepareParts = (partBytes: number) => banks.prepareParts(old?.banks, from, partBytes);
    const commit = () => {
      checkCommit(layer, runs(), old, this.#layers.get(layer));
      if (old !== undefined) {
        for (const _ of banks.copyParts(old.banks, from, Number.POSITIVE_INFINITY));
        old.banks.destroy();
      }
      this.#layers.set(layer, { banks, regimes: this.#bind(layer, banks) });
    };
    return { prepareParts, commit, discard: () => banks.destroy() };
  }

  #checkFormats(layer: number, formats: readonly ExpertFormat[]): void {
    if (formats.length > this.#maxSlots) {
      throw new SlotLimitError(
        `layer ${layer}: ${formats.length} experts on one GPU, at most ${this.#maxSlots}`,
      );
    }
    for (const format of formats) {
      if (this.#compiled.formats.includes(format)) continue;
      const known = this.#compiled.formats.join(", ");
      throw new RangeError(`layer ${layer}: a slot in ${format}, the device is for ${known}`);
    }
  }

  /** Puts an expert into a slot. Throws RangeError where slot or shape does not fit, WeightOverflowError. */
  load(layer: number, slot: number, weights: StoredExpert): void {
    const format = slotFormat(layer, slot, this.#layer(layer).banks.formats);
    const name = `layer ${layer} slot ${slot}`;
    this.loadPacked(layer, slot, packExpert(name, weights, this.#sizes, format));
  }

  /** Puts a packed expert into a slot. Throws RangeError where slot or format does not fit. */
  loadPacked(layer: number, slot: number, expert: PackedExpert): void {
    const { banks } = this.#layer(layer);
    checkPacked(`layer ${layer} slot ${slot}`, expert, slotFormat(layer, slot, banks.formats));
    banks.put(slot, expert);
  }

  /** As `ExpertDevice.loadParts`. */
  loadParts(
    layer: number,
    slot: number,
    expert: PackedExpert,
    partBytes: number,
  ): Generator<number, void> {
    const { banks } = this.#layer(layer);
    checkPacked(`layer ${layer} slot ${slot}`, expert, slotFormat(layer, slot, banks.formats));
    return banks.putParts(slot, expert, partBytes);
  }

  /** As `ExpertDevice.read`. */
  async read(layer: number, slot: number): Promise<PackedExpert> {
    const { banks } = this.#layer(layer);
    if (!banks.holds(slot)) {
      throw new RangeError(`layer ${layer} slot ${slot}: no expert is loaded`);
    }
    return banks.read(slot);
  }

  /** Whether a slot holds an expert. Throws RangeError where the layer has no slots. */
  holds(layer: number, slot: number): boolean {
    return this.#layer(layer).banks.holds(slot);
  }

  numSlots(layer: number): number {
    return this.#layer(layer).banks.formats.length;
  }

  /** Encodes the layer's experts over `sizes.tokens` rows; the counts must hold the same sizes when it runs. */
  encode(pass: GPUComputePassEncoder, layer: number, sizes: StepSizes): void {
    const regime = this.#compiled.kernels.choose(sizes);
    for (const kernel of this.#layer(layer).regimes[regime]) kernel.encode(pass, sizes);
  }

  /** Encodes every way of running a layer, so that the driver has compiled them before the first real rows. */
  encodeAll(pass: GPUComputePassEncoder, layer: number, sizes: StepSizes): void {
    for (const kernel of this.#layer(layer).regimes.flat()) kernel.encode(pass, sizes);
  }

  /** Bytes that the slots of all layers take: weights, scales and biases. */
  residentBytes(): number {
    let bytes = 0;
    for (const { banks } of this.#layers.values()) {
      for (const format of banks.formats) bytes += expertBytes(this.#sizes, format);
    }
    return bytes;
  }

  free(layer: number): void {
    this.#layers.get(layer)?.banks.destroy();
    this.#layers.delete(layer);
  }

  close(): void {
    for (const layer of this.#layers.keys()) this.free(layer);
    for (const buffer of [...this.#tiles, this.#inner, this.#pairs]) buffer?.destroy();
  }

  /** The layer's kernels of each regime: sort, then each half over every bank, then combine. */
  #bind(layer: number, banks: ExpertBanks): BoundKernel<StepSizes>[][] {
    const { counts, rows, sums } = this.#io;
    const routing = this.#io.routing(layer);
    const end = this.#compiled.combine.bind(counts, this.#pairs, routing, sums);
    return this.#compiled.regimes.map(({ group, formats }, index) => {
      const tiles = this.#tiles[index];
      const found = tiles ?? routing;
      const gateUps = banks.banks.map((bank) =>
        bindHalf(formats, bank, "gateUp", counts, rows, this.#inner, found),
      );
      const downs = banks.banks.map((bank) =>
        bindHalf(formats, bank, "down", counts, this.#inner, this.#pairs, found),
      );
      const sort = group && tiles ? [group.bind(counts, routing, tiles)] : [];
      return [...sort, ...gateUps, ...downs, end];
    });
  }

  #layer(layer: number): Layer {
    const of = this.#layers.get(layer);
    if (of === undefined) throw new RangeError(`layer ${layer} has no slots on this device`);
    return of;
  }
}

/** Binds one half of a bank's experts as kernels/expert-bindings.ts says. */
function bindHalf(
  formats: CompiledRegime["formats"],
  bank: Bank,
  half: "gateUp" | "down",
  counts: GPUBuffer,
  input: GPUBuffer,
  output: GPUBuffer,
  found: Binding,
): BoundKernel<StepSizes> {
  const { weights, scales, biases } = bank[half];
  const kernel = formats.get(bank.format)![half];
  return kernel.bind(counts, input, weights, output, found, scales, bank.places, biases);
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

/** Bytes of a buffer on the CPU at most, where it holds several experts. */
const SOFTWARE_BANK_BYTES = 2 ** 24;

/**
 * What the adapter takes; less on the CPU, whose driver writes zeros into a whole buffer, page by page, before its first
 * use, while everything waits. There a run over many buffers takes no longer than over few.
 */
function bankBytesOf(gpu: Gpu, sizes: ExpertSizes, formats: readonly ExpertFormat[]): number {
  const { maxBufferSize, maxStorageBufferBindingSize } = gpu.device.limits;
  const most = Math.min(maxBufferSize, maxStorageBufferBindingSize);
  if (!gpu.offers.software) return most;
  const one = Math.max(...formats.map((format) => largestPart(sizes, format)));
  return Math.min(most, Math.max(one, SOFTWARE_BANK_BYTES));
}

interface CompiledBank {
  readonly gateUp: CompiledKernel<StepSizes>;
  readonly down: CompiledKernel<StepSizes>;
}

interface CompiledRegime {
  readonly group?: CompiledKernel<StepSizes>;
  readonly formats: ReadonlyMap<ExpertFormat, CompiledBank>;
}

interface Compiled {
  readonly kernels: ExpertKernels;
  readonly formats: readonly ExpertFormat[];
  readonly regimes: readonly CompiledRegime[];
  readonly combine: CompiledKernel<StepSizes>;
}

async function compile(
  gpu: Gpu,
  sizes: ExpertSizes,
  formats: readonly ExpertFormat[],
  {
    kernels = plainExpertKernels(sizes, inputLoads(gpu.offers)),
    maxSlots = MAX_SLOTS,
  }: ExpertFfnOptions,
): Promise<Compiled> {
  const regimes: CompiledRegime[] = [];
  for (const { group, bank } of kernels.regimes) {
    const compiled = new Map<ExpertFormat, CompiledBank>();
    for (const format of formats) {
      const { gateUp, down } = bank(format);
      compiled.set(format, {
        gateUp: await compileKernel(gpu, gateUp),
        down: await compileKernel(gpu, down),
      });
    }
    regimes.push({
      group: group && (await compileKernel(gpu, groupKernel(group, maxSlots))),
      formats: compiled,
    });
  }
  return {
    kernels,
    formats,
    regimes,
    combine: await compileKernel(gpu, combine(sizes.hiddenSize)),
  };
}
