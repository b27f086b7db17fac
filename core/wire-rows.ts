/** Rows of hidden states as the wire carries them: packed once for a layer, then taken from for each shard. */

import { WireDtype } from "../proto/gen/switchyard/v1/expert.ts";
import { packInt8Rows, unpackInt8Rows } from "./int8-rows.ts";
import { bytesOf, F16_MAX, f16FromBytes, f32FromBytes } from "./tensor.ts";

/** --wire: the dtype of the rows that experts get, on shards or on the router itself. */
export type WireSetting = "f16" | "f32" | "int8";

/** A dtype that rows are sent in. */
export type RowDtype = Exclude<WireDtype, typeof WireDtype.WIRE_DTYPE_UNSPECIFIED>;

/** Bytes of a value of each dtype. */
const VALUE_BYTES: Readonly<Record<RowDtype, number>> = {
  [WireDtype.WIRE_DTYPE_F16]: 2,
  [WireDtype.WIRE_DTYPE_F32]: 4,
  [WireDtype.WIRE_DTYPE_INT8]: 1,
};

/** Packed rows. */
export interface WireRows {
  readonly dtype: RowDtype;
  /** [numRows, hiddenSize] in `dtype`, little-endian. */
  readonly bytes: Uint8Array;
  /** [numRows] of rows in int8; else empty. */
  readonly scales: Float32Array;
  readonly numRows: number;
}

const NO_SCALES = new Float32Array(0);

/** Whether rows can be sent in this dtype. */
export function isRowDtype(dtype: WireDtype): dtype is RowDtype {
  return dtype in VALUE_BYTES;
}

/** Bytes of a row, without its scale. */
export function bytesPerRow(dtype: RowDtype, hiddenSize: number): number {
  return VALUE_BYTES[dtype] * hiddenSize;
}

/**
 * Packs rows [numRows, hiddenSize]. They become f32 whatever `wire` says where f16 does not hold a value, as it is beyond
 * ±65504, or where a row is not exact in int8.
 */
export function packRows(rows: Float32Array, hiddenSize: number, wire: WireSetting): WireRows {
  const numRows = rows.length / hiddenSize;
  const int8 = wire === "int8" ? packInt8Rows(rows, hiddenSize) : undefined;
  if (int8 !== undefined) {
    const { values, scales } = int8;
    return { dtype: WireDtype.WIRE_DTYPE_INT8, bytes: bytesOf(values), scales, numRows };
  }
  const half = wire === "f16" && fitsF16(rows);
  return {
    dtype: half ? WireDtype.WIRE_DTYPE_F16 : WireDtype.WIRE_DTYPE_F32,
    bytes: bytesOf(half ? new Float16Array(rows) : rows),
    scales: NO_SCALES,
    numRows,
  };
}

/** Some of the rows, ascending; the rows themselves, not copied, where they are all of them. */
export function takeRows(rows: WireRows, indices: Uint32Array): WireRows {
  if (indices.length === rows.numRows) return rows;
  const rowBytes = rows.bytes.length / rows.numRows;
  const bytes = new Uint8Array(indices.length * rowBytes);
  for (let to = 0; to < indices.length; to++) {
    const from = indices[to] * rowBytes;
    bytes.set(rows.bytes.subarray(from, from + rowBytes), to * rowBytes);
  }
  const scales =
    rows.scales.length === 0 ? NO_SCALES : Float32Array.from(indices, (from) => rows.scales[from]);
  return { dtype: rows.dtype, bytes, scales, numRows: indices.length };
}

/** The rows [numRows, hiddenSize] as f32 values. */
export function unpackRows({ dtype, bytes, scales }: WireRows, hiddenSize: number): Float32Array {
  switch (dtype) {
    case WireDtype.WIRE_DTYPE_F16:
      return new Float32Array(f16FromBytes(bytes));
    case WireDtype.WIRE_DTYPE_F32:
      return f32FromBytes(bytes);
    case WireDtype.WIRE_DTYPE_INT8: {
      const values = new Int8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength);
      return unpackInt8Rows({ values, scales }, hiddenSize);
    }
  }
}

function fitsF16(rows: Float32Array): boolean {
  // By index: an iterator takes ten times as long.
  for (let i = 0; i < rows.length; i++) {
    if (rows[i] > F16_MAX || rows[i] < -F16_MAX) return false;
  }
  return true;
}
