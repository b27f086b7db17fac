/** Where a layer's expert weights lie on a GPU: slots of one format together in *banks*, none larger than a binding can be. */

import { type ExpertSizes, NO_SLOT, OutOfDeviceMemoryError } from "../expert-device.ts";
import { type ExpertFormat, rowScaleWords, rowWords, type PackedExpert } from "../expert-format.ts";
import { expertOf, partsOf } from "../packed-bytes.ts";
import { expertBytes } from "../weights.ts";
import { CommandParts } from "./command-parts.ts";
import { allocate, type Gpu, READ_BACK, STORAGE, tryAllocate, write } from "./device.ts";
import { mapForReading } from "./polling.ts";

/** Weights of one half of an expert, for all slots of a bank. */
export interface BankHalf {
  /** u32 [slots, rows, rowWords] */
  readonly weights: GPUBuffer;
  /** u32 [slots, rows, rowScaleWords]; 16 bytes where the format has none. */
  readonly scales: GPUBuffer;
  /** f32 [slots, rows]; 16 bytes where the experts have none. */
  readonly biases: GPUBuffer;
}

/** Slots of one format. */
export interface Bank {
  readonly format: ExpertFormat;
  /** Gate above up: 2 · intermediateSize rows. */
  readonly gateUp: BankHalf;
  /** hiddenSize rows. */
  readonly down: BankHalf;
  /** u32 [numSlots of the layer]: a slot's index in the bank, NO_SLOT in another bank. */
  readonly places: GPUBuffer;
}

/** Slots of a bank, before it is allocated. */
export interface BankPlan {
  readonly format: ExpertFormat;
  /** Slots of the layer, ascending; the index is their place. */
  readonly slots: readonly number[];
}

/** Bytes of the largest buffer that one slot needs a part of: its gate and up. */
export function largestPart(sizes: ExpertSizes, format: ExpertFormat): number {
  const { hiddenSize: h, expertIntermediateSize: i } = sizes;
  return 4 * Math.max(2 * i * rowWords(format, h), h * rowWords(format, i));
}

/** Formats that are advised where a wider one does not fit, and the flag's value for each. */
const NARROWER = [
  ["16", "f16"],
  ["8", "int8"],
  ["4", "int4-g32"],
] as const satisfies readonly (readonly [string, ExpertFormat])[];

/** Throws OutOfDeviceMemoryError where one buffer can not hold even one expert, with the widest format that it can hold. */
export function checkExpertFits(sizes: ExpertSizes, format: ExpertFormat, bankBytes: number): void {
  const bytes = largestPart(sizes, format);
  if (bytes <= bankBytes) return;
  const { hiddenSize, expertIntermediateSize: width } = sizes;
  const fits = NARROWER.find(([, other]) => largestPart(sizes, other) <= bankBytes);
  throw new OutOfDeviceMemoryError(
    `the buffer of one expert's gate and up in ${format}, 2 × ${width} × ${hiddenSize},`,
    bytes,
    bankBytes,
    fits === undefined
      ? "no format of experts fits a buffer of this adapter"
      : `start with --experts-bits ${fits[0]}`,
  );
}

/**
 * Divides a layer's slots into banks: as few as buffers of at most `bankBytes` allow, of about equal size.
 * Throws as `checkExpertFits`.
 */
export function planBanks(
  formats: readonly ExpertFormat[],
  sizes: ExpertSizes,
  bankBytes: number,
): BankPlan[] {
  return [...new Set(formats)].flatMap((format) => {
    const slots = formats.flatMap((of, slot) => (of === format ? [slot] : []));
    checkExpertFits(sizes, format, bankBytes);
    const fit = Math.floor(bankBytes / largestPart(sizes, format));
    const numBanks = Math.ceil(slots.length / fit);
    const perBank = Math.ceil(slots.length / numBanks);
    return Array.from({ length: numBanks }, (_, bank) => ({
      format,
      slots: slots.slice(bank * perBank, (bank + 1) * perBank),
    }));
  });
}

/** Allocates a bank of so many slots of a layer of `numSlots`. */
function makeBank(
  make: (part: string, bytes: number) => GPUBuffer,
  sizes: ExpertSizes,
  { format, slots }: BankPlan,
  numSlots: number,
): Bank {
  const { hiddenSize, expertIntermediateSize, expertBias } = sizes;
  const half = (part: string, rows: number, columns: number): BankHalf => {
    const of = (what: string) => `${part} ${what} of ${slots.length} experts in ${format}`;
    const allRows = slots.length * rows;
    return {
      weights: make(of("weights"), 4 * allRows * rowWords(format, columns)),
      scales: make(of("scales"), 4 * allRows * rowScaleWords(format, columns)),
      biases: make(of("biases"), expertBias ? 4 * allRows : 0),
    };
  };
  return {
    format,
    gateUp: half("gate and up", 2 * expertIntermediateSize, hiddenSize),
    down: half("down", hiddenSize, expertIntermediateSize),
    places: make("places", 4 * numSlots),
  };
}

/** A stretch of a bank's buffer: one part of one expert. */
interface Stretch {
  readonly buffer: GPUBuffer;
  readonly offset: number;
  readonly bytes: number;
}

/** Makes one buffer of a bank. */
type MakeBuffer = (label: string, bytes: number) => GPUBuffer;

/** How much faster copies are than memory's first use, measured on the CPU; on a GPU neither takes long. */
const COPY_FASTER = 4;

/** Weights of a layer's slots. */
export class ExpertBanks {
  readonly banks: readonly Bank[];
  readonly formats: readonly ExpertFormat[];
  readonly #gpu: Gpu;
  readonly #sizes: ExpertSizes;
  readonly #loaded: boolean[];
  /** By slot. */
  readonly #bankOf: readonly { readonly bank: number; readonly place: number }[];

  /** Allocates empty slots. Throws OutOfDeviceMemoryError, with nothing left allocated. */
  constructor(
    gpu: Gpu,
    sizes: ExpertSizes,
    label: string,
    formats: readonly ExpertFormat[],
    bankBytes: number,
    makeBuffer: MakeBuffer = (name, bytes) => allocate(gpu, name, bytes, STORAGE),
  ) {
    this.#gpu = gpu;
    this.#sizes = sizes;
    this.formats = [...formats];
    this.#loaded = formats.map(() => false);
    const plans = planBanks(formats, sizes, bankBytes);
    const bankOf = Array.from(formats, () => ({ bank: 0, place: 0 }));
    for (const [bank, { slots }] of plans.entries()) {
      for (const [place, slot] of slots.entries()) bankOf[slot] = { bank, place };
    }
    this.#bankOf = bankOf;
    const banks: Bank[] = [];
    const buffers: GPUBuffer[] = [];
    const make = (part: string, bytes: number) => {
      const buffer = makeBuffer(`${label}: ${part}`, bytes);
      buffers.push(buffer);
      return buffer;
    };
    try {
      for (const plan of plans) banks.push(makeBank(make, sizes, plan, formats.length));
      for (const [index, { slots }] of plans.entries()) {
        const places = new Uint32Array(formats.length).fill(NO_SLOT);
        for (const [place, slot] of slots.entries()) places[slot] = place;
        write(gpu, banks[index].places, 0, places);
      }
    } catch (error) {
      for (const buffer of buffers) buffer.destroy();
      throw error;
    }
    this.banks = banks;
  }

  /** Allocates empty slots where there is memory for them. Rejects with OutOfDeviceMemoryError, with nothing left allocated. */
  static async tried(
    gpu: Gpu,
    sizes: ExpertSizes,
    label: string,
    formats: readonly ExpertFormat[],
    bankBytes: number,
  ): Promise<ExpertBanks> {
    const tried: { readonly bytes: number; readonly failure: Promise<string | undefined> }[] = [];
    const banks = new ExpertBanks(gpu, sizes, label, formats, bankBytes, (name, size) => {
      const { buffer, bytes, failure } = tryAllocate(gpu, name, size, STORAGE);
      tried.push({ bytes, failure });
      return buffer;
    });
    const failed = await Promise.all(
      tried.map(async ({ bytes, failure }) => ((await failure) === undefined ? 0 : bytes)),
    );
    const missing = failed.reduce((sum, bytes) => sum + bytes, 0);
    if (missing === 0) return banks;
    banks.destroy();
    const needed = tried.reduce((sum, { bytes }) => sum + bytes, 0);
    const what = `${label} with ${formats.length} experts on ${gpu.adapter}`;
    throw new OutOfDeviceMemoryError(what, needed, needed - missing);
  }

  /** Whether a slot holds an expert. */
  holds(slot: number): boolean {
    return this.#loaded[slot] ?? false;
  }

  /** Puts an expert of the slot's format into it. */
  put(slot: number, expert: PackedExpert): void {
    for (const _ of this.putParts(slot, expert, Number.POSITIVE_INFINITY));
  }

  /** The same in parts of at most `partBytes`, or of one word; yields the bytes of each. */
  *putParts(slot: number, expert: PackedExpert, partBytes: number): Generator<number, void> {
    this.#loaded[slot] = false;
    const stretches = this.#stretches(slot);
    for (const [index, data] of partsOf(expert).entries()) {
      const { buffer, offset } = stretches[index];
      const length = Math.max(1, Math.floor(partBytes / 4));
      for (let from = 0; from < data.length; from += length) {
        const part = data.subarray(from, from + length);
        write(this.#gpu, buffer, offset + 4 * from, part);
        yield part.byteLength;
      }
    }
    this.#loaded[slot] = true;
  }

  /** The expert in a slot, as it is when this is called. */
  async read(slot: number): Promise<PackedExpert> {
    const { device } = this.#gpu;
    const format = this.formats[slot];
    const bytes = expertBytes(this.#sizes, format);
    const staging = allocate(this.#gpu, "read-back of an expert", bytes, READ_BACK);
    try {
      const encoder = device.createCommandEncoder();
      let at = 0;
      for (const part of this.#stretches(slot)) {
        if (part.bytes > 0) {
          encoder.copyBufferToBuffer(part.buffer, part.offset, staging, at, part.bytes);
        }
        at += part.bytes;
      }
      device.queue.submit([encoder.finish()]);
      await mapForReading(staging, bytes);
      const mapped = staging.getMappedRange(0, bytes).slice(0);
      return expertOf(this.#sizes, format, new Uint8Array(mapped));
    } finally {
      staging.destroy();
    }
  }

  /** As `NewSlots.prepareParts` in place of `other`: a run that is the first to use a buffer waits for zeros in all of it. */
  *prepareParts(
    other: ExpertBanks | undefined,
    from: readonly number[],
    partBytes: number,
  ): Generator<number, void> {
    const parts = new CommandParts(this.#gpu, partBytes);
    for (const buffer of this.#emptyBuffers()) {
      parts.encoder.clearBuffer(buffer, 0, 4);
      if (parts.add(buffer.size)) yield parts.submit();
    }
    if (parts.bytes > 0) yield parts.submit();
    if (other !== undefined) yield* this.copyParts(other, from, COPY_FASTER * partBytes);
  }

  /**
   * Copies experts from another layer's banks: slot i takes that of from[i], where there is one and it has not taken it yet.
   * Submits about every `partBytes`, and yields the bytes.
   */
  *copyParts(
    other: ExpertBanks,
    from: readonly number[],
    partBytes: number,
  ): Generator<number, void> {
    const parts = new CommandParts(this.#gpu, partBytes);
    for (const [slot, source] of from.entries()) {
      if (this.holds(slot) || !other.holds(source)) continue;
      const targets = this.#stretches(slot);
      for (const [index, { buffer, offset, bytes }] of other.#stretches(source).entries()) {
        const to = targets[index];
        for (let at = 0; at < bytes;) {
          const length = Math.min(bytes - at, parts.room);
          parts.encoder.copyBufferToBuffer(buffer, offset + at, to.buffer, to.offset + at, length);
          at += length;
          if (parts.add(length)) yield parts.submit();
        }
      }
      parts.onSubmit(() => (this.#loaded[slot] = true));
    }
    const bytes = parts.submit();
    if (bytes > 0) yield bytes;
  }

  /** The buffers that are empty before the first expert comes. */
  #emptyBuffers(): GPUBuffer[] {
    return this.banks.flatMap(({ gateUp, down }) =>
      [gateUp, down].flatMap(({ weights, scales, biases }) => [weights, scales, biases]),
    );
  }

  /** Where a slot's parts lie, in the order of `partsOf`. */
  #stretches(slot: number): Stretch[] {
    const { bank, place } = this.#bankOf[slot];
    const { format, gateUp, down } = this.banks[bank];
    const { hiddenSize, expertIntermediateSize, expertBias } = this.#sizes;
    const of = (half: BankHalf, index: number, rows: number, columns: number): Stretch[] => {
      const stretch = (buffer: GPUBuffer, words: number) => {
        const bytes = 4 * rows * words;
        return { buffer, offset: index * bytes, bytes };
      };
      return [
        stretch(half.weights, rowWords(format, columns)),
        stretch(half.scales, rowScaleWords(format, columns)),
        stretch(half.biases, expertBias ? 1 : 0),
      ];
    };
    const gate = of(gateUp, 2 * place, expertIntermediateSize, hiddenSize);
    const up = of(gateUp, 2 * place + 1, expertIntermediateSize, hiddenSize);
    const downs = of(down, place, hiddenSize, expertIntermediateSize);
    const all = [gate, up, downs];
    return [
      ...all.flatMap(([weights, scales]) => [weights, scales]),
      ...(expertBias ? all.map(([, , biases]) => biases) : []),
    ];
  }

  destroy(): void {
    for (const buffer of this.#emptyBuffers()) buffer.destroy();
    for (const { places } of this.banks) places.destroy();
  }
}
