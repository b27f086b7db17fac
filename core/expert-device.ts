/** Where routed experts are computed: a GPU or the CPU, under one interface for router and shards. */

import type { HostTensor } from "./tensor.ts";

/** How a cluster keeps weights in device memory. */
export type WeightsDtype = "f16" | "f32";

/** Device memory does not suffice for what was asked. */
export class OutOfDeviceMemoryError extends Error {
  override readonly name = "OutOfDeviceMemoryError";
  constructor(what: string, bytes: number, limit: number) {
    super(`${what} needs ${bytes} bytes of device memory, at most ${limit} can be had`);
  }
}

/** Widths of the expert FFNs that a device computes. */
export interface ExpertSizes {
  readonly hiddenSize: number;
  readonly expertIntermediateSize: number;
}

/** Weights of one expert FFN as the checkpoint has them. */
export interface ExpertWeights {
  /** [intermediateSize, hiddenSize] */
  readonly gate: HostTensor;
  /** [intermediateSize, hiddenSize] */
  readonly up: HostTensor;
  /** [hiddenSize, intermediateSize] */
  readonly down: HostTensor;
}

/** Slot id of a row's expert that is not on this device; it adds nothing to the row's sum. */
export const NO_SLOT = 0xffffffff;

/**
 * Holds expert weights in slots, per layer, and computes weighted partial sums over them.
 * Runs are answered one after another, in the order of the calls.
 */
export interface ExpertDevice {
  /** Description of what computes: the adapter, or "cpu". */
  readonly adapter: string;
  /** Rows that one `run` takes at most. */
  readonly maxRows: number;
  /** Makes `numSlots` empty slots for a layer. Throws OutOfDeviceMemoryError naming bytes and limit. */
  allocate(layer: number, numSlots: number): void;
  /**
   * Puts an expert into a slot, converted to the device's dtype.
   * Throws RangeError where slot or shape does not fit, WeightOverflowError where a value does not.
   */
  load(layer: number, slot: number, weights: ExpertWeights): void;
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
  /** Bytes of expert weights held. */
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
