/** Where a layer's expert weights lie on a GPU: slots of one format together in *banks*, none larger than a binding can be. */

import { type ExpertSizes, NO_SLOT, OutOfDeviceMemoryError } from "../expert-device.ts";
import { type ExpertFormat, rowScaleWords, rowWords } from "../expert-format.ts";
import type { PackedExpert } from "../weights.ts";
import { allocate, type Gpu, STORAGE, write } from "./device.ts";

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

/**
 * Divides a layer's slots into banks: as few as buffers of at most `bankBytes` allow, of about equal size.
 * Throws OutOfDeviceMemoryError where one expert alone does not fit.
 */
export function planBanks(
  formats: readonly ExpertFormat[],
  sizes: ExpertSizes,
  bankBytes: number,
): BankPlan[] {
  return [...new Set(formats)].flatMap((format) => {
    const slots = formats.flatMap((of, slot) => (of === format ? [slot] : []));
    const bytes = largestPart(sizes, format);
    const fit = Math.floor(bankBytes / bytes);
    if (fit === 0) {
      throw new OutOfDeviceMemoryError(`one buffer with an expert in ${format}`, bytes, bankBytes);
    }
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

/** Weights of a layer's slots. */
export class ExpertBanks {
  readonly banks: readonly Bank[];
  readonly formats: readonly ExpertFormat[];
  readonly #gpu: Gpu;
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
  ) {
    this.#gpu = gpu;
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
      const buffer = allocate(gpu, `${label}: ${part}`, bytes, STORAGE);
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

  /** Whether a slot holds an expert. */
  holds(slot: number): boolean {
    return this.#loaded[slot] ?? false;
  }

  /** Puts an expert of the slot's format into it. */
  put(slot: number, expert: PackedExpert): void {
    const { bank, place } = this.#bankOf[slot];
    const { gateUp, down } = this.banks[bank];
    const { gate, up, biases } = expert;
    const putInto = (buffer: GPUBuffer, index: number, data: Uint32Array | Float32Array) => {
      if (data.length > 0) write(this.#gpu, buffer, index * data.byteLength, data);
    };
    for (const part of ["weights", "scales"] as const) {
      putInto(gateUp[part], 2 * place, gate[part]);
      putInto(gateUp[part], 2 * place + 1, up[part]);
      putInto(down[part], place, expert.down[part]);
    }
    if (biases !== undefined) {
      putInto(gateUp.biases, 2 * place, biases.gate);
      putInto(gateUp.biases, 2 * place + 1, biases.up);
      putInto(down.biases, place, biases.down);
    }
    this.#loaded[slot] = true;
  }

  destroy(): void {
    for (const { gateUp, down, places } of this.banks) {
      for (const half of [gateUp, down]) {
        for (const buffer of [half.weights, half.scales, half.biases]) buffer.destroy();
      }
      places.destroy();
    }
  }
}
