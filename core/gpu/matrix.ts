/** Matrices on the device in slices of rows, each no larger than one binding takes. */

import type { WeightsDtype } from "../expert-device.ts";
import { bytesPerElement, type HostTensor } from "../tensor.ts";
import { weightBytes, weightsInParts } from "../weights.ts";
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
  const [, columns] = tensors[0].shape;
  const rowBytes = columns * weightBytes(dtype);
  const rows = tensors.reduce((sum, { shape }) => sum + shape[0], 0);
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

/** Converts rows of a tensor [rows, columns] and writes them at a byte offset. Throws as `convertWeights`. */
export function writeRows(
  gpu: Gpu,
  name: string,
  tensor: HostTensor,
  rows: RowSlice,
  dtype: WeightsDtype,
  buffer: GPUBuffer,
  offset: number,
): void {
  for (const { values, at } of weightsInParts(name, [rowsOf(tensor, rows)], dtype)) {
    write(gpu, buffer, offset + at * weightBytes(dtype), values);
  }
}

/** Rows of a matrix; nothing is copied. */
export function rowsOf(matrix: HostTensor, { firstRow, rows }: RowSlice): HostTensor {
  const [, columns] = matrix.shape;
  const rowBytes = columns * bytesPerElement(matrix.dtype);
  const bytes = matrix.bytes.subarray(firstRow * rowBytes, (firstRow + rows) * rowBytes);
  return { ...matrix, shape: [rows, columns], bytes };
}

/** Columns of a matrix, copied unless they are all. */
export function columnsOf(matrix: HostTensor, firstColumn: number, columns: number): HostTensor {
  const [rows, all] = matrix.shape;
  if (columns === all) return matrix;
  const size = bytesPerElement(matrix.dtype);
  const bytes = new Uint8Array(rows * columns * size);
  for (let row = 0; row < rows; row++) {
    const start = (row * all + firstColumn) * size;
    bytes.set(matrix.bytes.subarray(start, start + columns * size), row * columns * size);
  }
  return { ...matrix, shape: [rows, columns], bytes };
}
