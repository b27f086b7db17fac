/** Weights into MXFP4 (OCP Microscaling Formats 1.0: e2m1 in blocks of 32 with a shared power of two) and back. */

/** Columns that share a scale. */
const BLOCK = 32;

/** Values of the codes 0 … 7; 8 … 15 are their negatives. */
const MAGNITUDES = [0, 0.5, 1, 1.5, 2, 3, 4, 6];

/** Value of each code. */
export const E2M1 = Float32Array.from({ length: 16 }, (_, code) =>
  code < 8 ? MAGNITUDES[code] : -MAGNITUDES[code - 8],
);

/** Code of the nearest magnitude, ties to even codes. */
function nearest(magnitude: number): number {
  if (magnitude < 1.75) {
    if (magnitude < 0.75) return magnitude > 0.25 ? 1 : 0;
    return magnitude > 1.25 ? 3 : 2;
  }
  if (magnitude < 3.5) return magnitude > 2.5 ? 5 : 4;
  return magnitude > 5 ? 7 : 6;
}

/** Squared error of a block under a scale. */
function blockError(values: Float32Array, begin: number, end: number, inverse: number): number {
  let sum = 0;
  for (let i = begin; i < end; i++) {
    const magnitude = Math.abs(values[i]) * inverse;
    const difference = magnitude - MAGNITUDES[nearest(magnitude)];
    sum += difference * difference;
  }
  // In units of the values.
  return sum / (inverse * inverse);
}

/**
 * Rounds `columns` values to e2m1. A block's scale brings its largest value to [4, 8), as the specification says, or to
 * [2, 4) where that has the smaller squared error (6 is the largest code). Values that are MXFP4 already keep their bits.
 * @param bits the same values' bits; @param at counts u32, `scaleAt` bytes
 */
export function packMxfp4Row(
  values: Float32Array,
  bits: Uint32Array,
  from: number,
  columns: number,
  out: Uint32Array,
  at: number,
  scales: Uint8Array,
  scaleAt: number,
): void {
  for (let start = 0; start < columns; start += BLOCK) {
    const begin = from + start;
    const end = from + Math.min(start + BLOCK, columns);
    let largest = 0;
    for (let i = begin; i < end; i++) {
      // Without their sign, bits of floats are in the order of their magnitudes.
      const magnitude = bits[i] & 0x7fffffff;
      if (magnitude > largest) largest = magnitude;
    }
    // The exponent of the largest value, less the 2 of e2m1's largest.
    const low = Math.min(254, Math.max(1, (largest >>> 23) - 2));
    const high = Math.min(254, low + 1);
    let scale = low;
    if (
      blockError(values, begin, end, 2 ** (127 - high)) <
      blockError(values, begin, end, 2 ** (127 - low))
    ) {
      scale = high;
    }
    scales[scaleAt++] = scale;
    const inverse = 2 ** (127 - scale);
    for (let i = begin; i < end; i += 8) {
      let word = 0;
      for (let j = 0; j < 8; j++) {
        const code = nearest(Math.abs(values[i + j]) * inverse) | ((bits[i + j] >>> 31) << 3);
        word |= code << (4 * j);
      }
      out[at++] = word;
    }
  }
}

/** Writes the values of a row of MXFP4; `scaleAt` counts u32. */
export function unpackMxfp4Row(
  words: Uint32Array,
  at: number,
  columns: number,
  scales: Uint32Array,
  scaleAt: number,
  out: Float32Array,
): void {
  for (let i = 0; i < columns; i += 8) {
    const block = (i / BLOCK) | 0;
    const exponent = (scales[scaleAt + (block >> 2)] >>> (8 * (block & 3))) & 255;
    const scale = 2 ** (exponent - 127);
    const word = words[at + i / 8];
    for (let j = 0; j < 8; j++) out[i + j] = E2M1[(word >>> (4 * j)) & 15] * scale;
  }
}
