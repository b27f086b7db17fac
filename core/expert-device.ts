/** Where routed experts are computed: a GPU or the CPU, under one interface for router and shards. */

import type { ExpertFormat, PackedExpert } from "./expert-format.ts";
import type { Activation } from "./model/config.ts";
import type { HostTensor, StoredMatrix } from "./tensor.ts";

/** How a cluster keeps the weights of attention, gates, dense FFNs and shared experts in device memory. */
export type WeightsDtype = "f16" | "f32";

/** Device memory does not suffice for what was asked. */
export class OutOfDeviceMemoryError extends Error {
  override readonly name = "OutOfDeviceMemoryError";
  constructor(what: string, bytes: number, limit: number, remedy?: string) {
    const end = remedy === undefined ? "" : `; ${remedy}`;
    super(`${what} needs ${bytes} bytes of device memory, at most ${limit} can be had${end}`);
  }
}

/** Widths and kind of the expert FFNs that a device computes. */
export interface ExpertSizes {
  readonly hiddenSize: number;
  readonly expertIntermediateSize: number;
  readonly activation: Activation;
  /** The projections carry biases. */
  readonly expertBias: boolean;
}

/** Weights of one expert FFN as the checkpoint has them. */
export interface ExpertWeights<Matrix extends StoredMatrix = HostTensor> {
  /** [intermediateSize, hiddenSize] */
  readonly gate: Matrix;
  /** [intermediateSize, hiddenSize] */
  readonly up: Matrix;
  /** [hiddenSize, intermediateSize] */
  readonly down: Matrix;
  /** [intermediateSize]; there where ExpertSizes.expertBias says so, as upBias and downBias. */
  readonly gateBias?: HostTensor;
  /** [intermediateSize] */
  readonly upBias?: HostTensor;
  /** [hiddenSize] */
  readonly downBias?: HostTensor;
}

/** Weights of one routed expert; those that a checkpoint has in MXFP4 are still in it. */
export type StoredExpert = ExpertWeights<StoredMatrix>;

/** Slot id of a row's expert that is not on this device; it adds nothing to the row's sum. */
export const NO_SLOT = 0xffffffff;

/** Slots that are to take the place of a layer's, made beside them: until `commit` or `discard` both take memory. */
export interface NewSlots {
  /**
   * Makes their memory ready and copies experts that stay, about `partBytes` at a time, so that runs come in between: yields
   * the bytes of each part that is under way. The old slots must not change meanwhile. What is left of it `commit` does.
   */
  prepareParts(partBytes: number): Generator<number, void>;
  /**
   * Puts them in force: experts that stay are copied on the device, the old slots are freed. A run that is called before
   * sees the old slots, one after it the new ones. Throws while a run is under way, or where the layer's slots have
   * changed since; the old ones stay then.
   */
  commit(): void;
  /** Frees them; the old ones stay. */
  discard(): void;
}

/**
 * Holds expert weights in slots, per layer, and computes weighted partial sums over them.
 * Runs are answered one after another, in the order of the calls.
 */
export interface ExpertDevice {
  /** Description of what computes: the adapter, or "cpu". */
  readonly adapter: string;
  /** Rows that one `run` takes at most. */
  readonly maxRows: number;
  /**
   * Makes empty slots for a layer, one per format. Throws OutOfDeviceMemoryError naming bytes and limit, RangeError
   * where the device was not made for a format.
   */
  allocate(layer: number, formats: readonly ExpertFormat[]): void;
  /**
   * Puts an expert into a slot, converted to the slot's format.
   * Throws RangeError where slot or shape does not fit, WeightOverflowError where a value does not.
   */
  load(layer: number, slot: number, weights: StoredExpert): void;
  /** Puts an expert that `packExpert` has converted into a slot. Throws RangeError where slot or format does not fit. */
  loadPacked(layer: number, slot: number, expert: PackedExpert): void;
  /**
   * The same a part at a time, of about `partBytes` each, so that runs come in between: yields the bytes of each part as it
   * is written. The slot holds its expert when the generator is done; it must not change meanwhile.
   */
  loadParts(
    layer: number,
    slot: number,
    expert: PackedExpert,
    partBytes: number,
  ): Generator<number, void>;
  /** The expert in a slot as it was packed. Rejects with RangeError where there is none. */
  read(layer: number, slot: number): Promise<PackedExpert>;
  /**
   * Makes other slots for a layer, one per format: slot i will have the expert of the present slot from[i], or be empty
   * where that is NO_SLOT or empty itself. Until then the layer takes memory for both. Rejects with OutOfDeviceMemoryError
   * naming bytes and limit, RangeError where a format or a slot does not fit; the present slots stay.
   */
  rearrange(
    layer: number,
    formats: readonly ExpertFormat[],
    from: readonly number[],
  ): Promise<NewSlots>;
  /** Settles when what was loaded is in device memory, and the host does not hold it any more. */
  settled(): Promise<void>;
  /**
   * For each row, the sum over its slots of weight · expert(row).
   * @param rows [numRows, hiddenSize] f32
   * @param slots [numRows, topK]; NO_SLOT adds nothing
   * @param weights [numRows, topK] f32
   * @returns [numRows, hiddenSize] f32
   * Rejects with RangeError where a size does not fit, rows exceed maxRows, or a slot holds no expert.
   */
  run(
    layer: number,
    rows: Float32Array,
    slots: Uint32Array,
    weights: Float32Array,
  ): Promise<Float32Array>;
  /** Bytes that the slots of all layers take: weights, scales and biases. */
  residentBytes(): number;
  /** Frees a layer's slots. */
  free(layer: number): void;
  /** Settles with the reason when the device is lost; never otherwise. */
  readonly lost: Promise<string>;
  close(): void;
}

/**
 * Checks the arguments of `ExpertDevice.run`; gives topK.
 * Throws RangeError where a size does not fit, rows exceed `maxRows`, or a slot holds no expert.
 */
export function checkRun(
  layer: number,
  numRows: number,
  slots: Uint32Array,
  weights: Float32Array,
  device: { readonly maxRows: number; readonly holds: (slot: number) => boolean },
): number {
  if (!Number.isInteger(numRows) || numRows < 1 || numRows > device.maxRows) {
    throw new RangeError(`layer ${layer}: ${numRows} rows, expected 1 to ${device.maxRows}`);
  }
  const topK = slots.length / numRows;
  if (!Number.isInteger(topK) || topK < 1 || weights.length !== slots.length) {
    throw new RangeError(
      `layer ${layer}: ${slots.length} slots and ${weights.length} weights for ${numRows} rows`,
    );
  }
  for (const slot of slots) {
    if (slot !== NO_SLOT && !device.holds(slot)) {
      throw new RangeError(`layer ${layer} slot ${slot}: no expert is loaded`);
    }
  }
  return topK;
}

/** Format of a layer's slot. Throws RangeError where there is no such slot. */
export function slotFormat(
  layer: number,
  slot: number,
  formats: readonly ExpertFormat[],
): ExpertFormat {
  if (!(slot in formats)) {
    throw new RangeError(`layer ${layer} slot ${slot}: the layer has ${formats.length} slots`);
  }
  return formats[slot];
}

/** Checks the arguments of `ExpertDevice.rearrange` against a layer's present formats. Throws RangeError. */
export function checkSources(
  layer: number,
  formats: readonly ExpertFormat[],
  from: readonly number[],
  present: readonly ExpertFormat[],
): void {
  if (from.length !== formats.length) {
    throw new RangeError(`layer ${layer}: ${formats.length} slots from ${from.length}`);
  }
  for (const [slot, source] of from.entries()) {
    if (source === NO_SLOT) continue;
    const format = slotFormat(layer, source, present);
    if (format === formats[slot]) continue;
    throw new RangeError(
      `layer ${layer} slot ${slot}: in ${formats[slot]}, slot ${source} that it comes from is in ${format}`,
    );
  }
}

/** Throws where slots can not be put in force now: a run is under way, or others have taken the place of `old`. */
export function checkCommit(layer: number, runs: number, old: unknown, present: unknown): void {
  if (runs > 0) throw new Error(`layer ${layer}: its slots can not change during a run`);
  if (old !== present) throw new Error(`layer ${layer}: its slots have changed meanwhile`);
}

/** Checks that an expert is packed as its slot wants it; `name` is the slot's. Throws RangeError. */
export function checkPacked(name: string, expert: PackedExpert, format: ExpertFormat): void {
  if (expert.format !== format) {
    throw new RangeError(`${name}: packed in ${expert.format}, the slot is for ${format}`);
  }
}

/** Runs any number of rows on a device, at most its maxRows at a time; arguments and result as of `ExpertDevice.run`. */
export async function runInParts(
  device: ExpertDevice,
  layer: number,
  hiddenSize: number,
  rows: Float32Array,
  slots: Uint32Array,
  weights: Float32Array,
): Promise<Float32Array> {
  const numRows = rows.length / hiddenSize;
  if (numRows <= device.maxRows) return device.run(layer, rows, slots, weights);
  const topK = slots.length / numRows;
  const sums = new Float32Array(rows.length);
  for (let from = 0; from < numRows; from += device.maxRows) {
    const to = Math.min(numRows, from + device.maxRows);
    const part = await device.run(
      layer,
      rows.subarray(from * hiddenSize, to * hiddenSize),
      slots.subarray(from * topK, to * topK),
      weights.subarray(from * topK, to * topK),
    );
    sums.set(part, from * hiddenSize);
  }
  return sums;
}
