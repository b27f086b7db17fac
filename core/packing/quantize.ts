/**
 * Weights into the formats of experts and back. Pure, on typed arrays of the caller's: fit for worker threads.
 * Unpacking is the oracle of what kernels compute with.
 */

import {
  type ExpertFormat,
  formatLayout,
  type PackedMatrix,
  rowScaleWords,
  rowWords,
} from "../expert-format.ts";
import { packInt4Row, packInt8Row, unpackInt4Row, unpackInt8Row } from "./quantize-int.ts";
import { packMxfp4Row, unpackMxfp4Row } from "./quantize-mxfp4.ts";

/**
 * Packs rows [fromRow, fromRow + values.length / columns) of a matrix.
 * @param values [rows, columns] f32, finite; for f16 within ±65504, for int4 within ±65504 · 7; columns a multiple of 8
 */
export function packRows(
  format: ExpertFormat,
  values: Float32Array,
  columns: number,
  out: PackedMatrix,
  fromRow: number,
): void {
  const words = rowWords(format, columns);
  const scaleWords = rowScaleWords(format, columns);
  const numRows = values.length / columns;
  const at = fromRow * words;
  switch (format) {
    case "f32":
      new Float32Array(out.weights.buffer, out.weights.byteOffset).set(values, at);
      return;
    case "f16":
      new Float16Array(out.weights.buffer, out.weights.byteOffset).set(values, at * 2);
      return;
    case "int8": {
      const bytes = new Int8Array(out.weights.buffer, out.weights.byteOffset);
      const scales = new Float32Array(out.scales.buffer, out.scales.byteOffset);
      for (let row = 0; row < numRows; row++) {
        const to = fromRow + row;
        scales[to] = packInt8Row(values, row * columns, columns, bytes, to * columns);
      }
      return;
    }
    case "mxfp4": {
      const scales = new Uint8Array(out.scales.buffer, out.scales.byteOffset);
      const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
      for (let row = 0; row < numRows; row++) {
        const to = fromRow + row;
        const from = row * columns;
        packMxfp4Row(
          values,
          bits,
          from,
          columns,
          out.weights,
          to * words,
          scales,
          4 * to * scaleWords,
        );
      }
      return;
    }
    default: {
      const scales = new Float16Array(out.scales.buffer, out.scales.byteOffset);
      const group = formatLayout(format).group!;
      for (let row = 0; row < numRows; row++) {
        const to = fromRow + row;
        const from = row * columns;
        packInt4Row(
          values,
          from,
          columns,
          group,
          out.weights,
          to * words,
          scales,
          2 * to * scaleWords,
        );
      }
    }
  }
}

/** Writes the values of one row of a packed matrix to `out` [columns]. */
export function unpackRow(
  format: ExpertFormat,
  matrix: PackedMatrix,
  row: number,
  columns: number,
  out: Float32Array,
): void {
  const { weights, scales } = matrix;
  const at = row * rowWords(format, columns);
  const scaleAt = row * rowScaleWords(format, columns);
  switch (format) {
    case "f32":
      out.set(new Float32Array(weights.buffer, weights.byteOffset + 4 * at, columns));
      return;
    case "f16":
      unpackF16Row(weights, at, columns, out);
      return;
    case "int8":
      unpackInt8Row(weights, at, columns, floatOf(scales[scaleAt]), out);
      return;
    case "mxfp4":
      unpackMxfp4Row(weights, at, columns, scales, scaleAt, out);
      return;
    default:
      unpackInt4Row(weights, at, columns, formatLayout(format).group!, scales, scaleAt, out);
  }
}

/** Every value of a packed matrix, [rows, columns]. */
export function unpackMatrix(
  format: ExpertFormat,
  matrix: PackedMatrix,
  columns: number,
): Float32Array<ArrayBuffer> {
  const rows = matrix.weights.length / rowWords(format, columns);
  const values = new Float32Array(rows * columns);
  for (let row = 0; row < rows; row++) {
    const start = row * columns;
    unpackRow(format, matrix, row, columns, values.subarray(start, start + columns));
  }
  return values;
}

const floatWord = new Float32Array(1);
const wordBits = new Uint32Array(floatWord.buffer);

function floatOf(bits: number): number {
  wordBits[0] = bits;
  return floatWord[0];
}

/** Value of every f16: converting one by one is several times slower. */
let f16Values: Float32Array | undefined;

/** Value of an f16 by its bits. */
function f16Table(): Float32Array {
  f16Values ??= Float32Array.from(
    new Float16Array(Uint16Array.from({ length: 0x10000 }, (_, bits) => bits).buffer),
  );
  return f16Values;
}

function unpackF16Row(words: Uint32Array, at: number, columns: number, out: Float32Array): void {
  const table = f16Table();
  for (let i = 0; i < columns; i += 2) {
    const word = words[at + i / 2];
    out[i] = table[word & 0xffff];
    out[i + 1] = table[word >>> 16];
  }
}
