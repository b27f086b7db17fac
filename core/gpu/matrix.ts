/** Matrices on the device in slices of rows, each no larger than one binding takes, and uploaded in pieces. */

import type { WeightsDtype } from "../expert-device.ts";
import { bytesPerElement, type HostTensor } from "../tensor.ts";
import { convertWeights, weightBytes } from "../weights.ts";
import { allocate, type Gpu, STORAGE, write } from "./device.ts";

/** Consecutive rows of a matrix. */
export interface RowSlice {
  readonly firstRow: number;
  readonly rows: number;
}

/** Rows of a matrix in a buffer of their own. */
export interface MatrixSlice extends RowSlice {
  readonly buffer: GPUBuffer;
}

/** A matrix [rows, columns]; its slices in order. */
export type GpuMatrix = readonly MatrixSlice[];

/** Slices begin at multiples of so many rows: a binding may begin where such a column of f32 results does. */
const SLICE_STEP = 64;

/** Values that are converted at a time, so that the host never holds a large matrix twice. */
const VALUES_AT_ONCE = 1 << 20;

/** Slices of `rows` rows of `rowBytes` bytes that bindings of `maxBytes` can take: as few and as equal as can be. */
export function rowSlices(rows: number, rowBytes: number, maxBytes: number): RowSlice[] {
  const most = Math.max(SLICE_STEP, Math.floor(maxBytes / rowBytes / SLICE_STEP) * SLICE_STEP);
  const number = Math.ceil(rows / most);
  const each = number === 1 ? rows : Math.ceil(rows / number / SLICE_STEP) * SLICE_STEP;
  return Array.from({ length: Math.ceil(rows / each) }, (_, i) => ({
    firstRow: i * each,
    rows: Math.min(each, rows - i * each),
  }));
}

/** Slices of a matrix [rows, columns] in a dtype on a device; rows are filled up to a multiple of four. */
export function matrixSlices(
  gpu: Gpu,
  rows: number,
  columns: number,
  dtype: WeightsDtype,
): RowSlice[] {
  const filled = Math.ceil(rows / 4) * 4;
  return rowSlices(filled, columns * weightBytes(dtype), gpu.maxBindingBytes);
}

/**
 * Uploads matrices one below the other, filled up with zeros to a multiple of four rows: [rows, columns] in slices.
 * Throws as `convertWeights` and `allocate`.
 */
export function uploadMatrix(
  gpu: Gpu,
  name: string,
  tensors: readonly HostTensor[],
  dtype: WeightsDtype,
): GpuMatrix {
  const columns = tensors[0].shape[1];
  const rows = tensors.reduce((sum, { shape }) => sum + shape[0], 0);
  const rowBytes = columns * weightBytes(dtype);
  const slices = matrixSlices(gpu, rows, columns, dtype).map(
    ({ firstRow, rows: of }, i, { length }): MatrixSlice => {
      const part = length === 1 ? "" : `, part ${i + 1} of ${length}`;
      const buffer = allocate(gpu, `${name}${part}`, of * rowBytes, STORAGE);
      return { firstRow, rows: of, buffer };
    },
  );
  let row = 0;
  for (const tensor of tensors) {
    for (const slice of slices) {
      const from = Math.max(row, slice.firstRow);
      const to = Math.min(row + tensor.shape[0], slice.firstRow + slice.rows);
      if (from >= to) continue;
      const rowsOf = { firstRow: from - row, rows: to - from };
      writeRows(gpu, name, tensor, rowsOf, dtype, slice.buffer, (from - slice.firstRow) * rowBytes);
    }
    row += tensor.shape[0];
  }
  return slices;
}

/** Converts rows of a tensor [rows, columns] and writes them at a byte offset, some at a time. Throws as `convertWeights`. */
export function writeRows(
  gpu: Gpu,
  name: string,
  tensor: HostTensor,
  { firstRow, rows }: RowSlice,
  dtype: WeightsDtype,
  buffer: GPUBuffer,
  offset: number,
): void {
  const columns = tensor.shape[1];
  const tensorRowBytes = columns * bytesPerElement(tensor.dtype);
  const rowBytes = columns * weightBytes(dtype);
  const atOnce = Math.max(1, Math.floor(VALUES_AT_ONCE / columns));
  for (let row = 0; row < rows; row += atOnce) {
    const number = Math.min(atOnce, rows - row);
    const start = (firstRow + row) * tensorRowBytes;
    const piece: HostTensor = {
      shape: [number, columns],
      dtype: tensor.dtype,
      bytes: tensor.bytes.subarray(start, start + number * tensorRowBytes),
    };
    write(gpu, buffer, offset + row * rowBytes, convertWeights(name, piece, dtype));
  }
}
