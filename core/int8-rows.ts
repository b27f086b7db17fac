/**
 * Rows in int8 with one scale each, symmetric: value = q · scale, |q| ≤ 127.
 *
 * A scale has 12 significant bits, so that every product is exact in f32 and whoever multiplies gets the same bits, and
 * it is rounded up, so that the largest q of a row is 127: from rounded values scale and q can be told exactly again.
 */

/** Largest magnitude of a row that is rounded to zeros: its scale would near the smallest f32. */
export const INT8_ROW_SMALLEST = 1e-30;

/** Largest magnitude of a row that is rounded; rows beyond it, or with a NaN, stay as they are. */
export const INT8_ROW_LARGEST = 1e38;

/** Largest q. */
const MOST = 127;

const word = new Uint32Array(1);
const float = new Float32Array(word.buffer);

/** The scale of a row by its largest magnitude. */
function scaleOf(largest: number): number {
  float[0] = largest / MOST;
  word[0] = (word[0] + 0xfff) & ~0xfff;
  return float[0];
}

/** Each row of x [rows, n] rounded to multiples of its scale. */
export function roundRowsInt8(x: Float32Array, n: number): Float32Array {
  const out = x.slice();
  for (let start = 0; start < x.length; start += n) {
    let largest = 0;
    for (let i = start; i < start + n; i++) {
      // Not Math.max: a NaN must not be lost.
      if (!(Math.abs(x[i]) <= largest)) largest = Math.abs(x[i]);
      if (Number.isNaN(largest)) break;
    }
    if (!(largest <= INT8_ROW_LARGEST)) continue;
    const scale = scaleOf(largest);
    for (let i = start; i < start + n; i++) {
      out[i] = largest < INT8_ROW_SMALLEST ? 0 : Math.round(x[i] / scale) * scale;
    }
  }
  return out;
}

/** Rows in int8. */
export interface Int8Rows {
  /** [numRows, n] */
  readonly values: Int8Array;
  /** [numRows] */
  readonly scales: Float32Array;
}

/** Packs rows [numRows, n] that were rounded; undefined where a value is not what its q and scale give, bit for bit. */
export function packInt8Rows(rows: Float32Array, n: number): Int8Rows | undefined {
  const values = new Int8Array(rows.length);
  const scales = new Float32Array(rows.length / n);
  for (let row = 0; row < scales.length; row++) {
    const start = row * n;
    let largest = 0;
    for (let i = start; i < start + n; i++) {
      const magnitude = Math.abs(rows[i]);
      if (magnitude > largest) largest = magnitude;
    }
    const scale = Math.fround(largest / MOST);
    scales[row] = scale;
    for (let i = start; i < start + n; i++) {
      const q = scale === 0 ? 0 : rows[i] / scale;
      values[i] = q;
      if (values[i] * scale !== rows[i]) return undefined;
    }
  }
  return { values, scales };
}

/** The rows [numRows, n] as f32. */
export function unpackInt8Rows({ values, scales }: Int8Rows, n: number): Float32Array {
  const rows = new Float32Array(values.length);
  for (let row = 0; row < scales.length; row++) {
    const scale = scales[row];
    for (let i = row * n; i < (row + 1) * n; i++) rows[i] = values[i] * scale;
  }
  return rows;
}
