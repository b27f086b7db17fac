/** The inner loops of packing experts in WebAssembly, four or eight values at a time: packing.wat is their source. */

import { readFileSync } from "node:fs";

import {
  type ExpertFormat,
  formatLayout,
  type PackedMatrix,
  rowScaleWords,
} from "../expert-format.ts";
import { bytesOf, bytesPerElement, type HostTensor, toF32 } from "../tensor.ts";

/** A WebAssembly memory; TypeScript has these types in its DOM library only. */
interface Memory {
  readonly buffer: ArrayBuffer;
  grow(pages: number): number;
}

declare const WebAssembly: {
  readonly Module: new (bytes: Uint8Array) => object;
  readonly Instance: new (module: object) => { readonly exports: object };
};

/** What packing.wat exports; pointers are byte offsets into `memory`. */
interface Exports {
  readonly memory: Memory;
  /** bf16 → f32; a multiple of 8 values. */
  readonly fromBf16: (from: number, to: number, count: number) => void;
  /** The largest of the values' bits without signs. */
  readonly maxBits: (from: number, count: number) => number;
  /** Rows of f32 → nibbles, and f16 scales `scaleBytes` apart from row to row. */
  readonly packInt4: (
    values: number,
    rows: number,
    columns: number,
    group: number,
    out: number,
    scales: number,
    scaleBytes: number,
  ) => void;
}

const PAGE = 65536;

/** Where staged rows begin: before them packing.wat works on a group of at most 128 values in 16 bits. */
const STAGED_AT = 256;

let loaded: Exports | undefined;

/** The module, of one instance per thread. */
function packing(): Exports {
  loaded ??= new WebAssembly.Instance(
    new WebAssembly.Module(readFileSync(new URL("packing.wasm", import.meta.url))),
  ).exports as Exports;
  return loaded;
}

/** Rows of a matrix as f32 in the module's memory. */
export interface StagedRows {
  /** Valid until rows are staged again. */
  readonly values: Float32Array<ArrayBuffer>;
  /** The largest magnitude; NaN where a value is NaN. */
  readonly largest: number;
}

/** Converts rows to f32, a multiple of 8 values. */
export function stageRows(rows: HostTensor): StagedRows {
  const { memory, fromBf16, maxBits } = packing();
  const count = rows.bytes.byteLength / bytesPerElement(rows.dtype);
  // Values, after them the bytes that they come from or go to: neither takes more than the values.
  const end = STAGED_AT + 4 * count;
  grow(memory, end + 4 * count);
  if (rows.dtype === "BF16") {
    new Uint8Array(memory.buffer).set(rows.bytes, end);
    fromBf16(end, STAGED_AT, count);
  } else {
    new Uint8Array(memory.buffer).set(bytesOf(toF32(rows)), STAGED_AT);
  }
  const largest = new Float32Array(Uint32Array.of(maxBits(STAGED_AT, count)).buffer)[0];
  return { values: new Float32Array(memory.buffer, STAGED_AT, count), largest };
}

/** Packs the rows that were staged last into an int4 format, to rows from `fromRow` on. */
export function packStagedInt4(
  format: ExpertFormat,
  { values }: StagedRows,
  columns: number,
  out: PackedMatrix,
  fromRow: number,
): void {
  const { memory, packInt4 } = packing();
  const rows = values.length / columns;
  const words = values.length / 8;
  const scaleWords = rowScaleWords(format, columns);
  const outAt = STAGED_AT + values.byteLength;
  const scalesAt = outAt + 4 * words;
  grow(memory, scalesAt + 4 * rows * scaleWords);
  const scales = new Uint32Array(memory.buffer, scalesAt, rows * scaleWords);
  // The half word that fills up a row.
  scales.fill(0);
  const group = formatLayout(format).group!;
  packInt4(STAGED_AT, rows, columns, group, outAt, scalesAt, 4 * scaleWords);
  out.weights.set(new Uint32Array(memory.buffer, outAt, words), (fromRow * columns) / 8);
  out.scales.set(scales, fromRow * scaleWords);
}

/** Makes the memory hold at least so many bytes. */
function grow(memory: Memory, bytes: number): void {
  const missing = Math.ceil((bytes - memory.buffer.byteLength) / PAGE);
  if (missing > 0) memory.grow(missing);
}
