/** Weights into MXFP4 (OCP Microscaling Formats 1.0: e2m1 in blocks of 32 with a shared power of two) and back. */

/** Columns that share a scale. */
const BLOCK = 32;

/** Values of the codes 0 … 7; 8 … 15 are their negatives. */
const MAGNITUDES = Float64Array.of(0, 0.5, 1, 1.5, 2, 3, 4, 6);

/** Value of each code. */
const E2M1 = Float32Array.from({ length: 16 }, (_, code) =>
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

/** Codes of a block under two scales. */
const lowCodes = new Uint8Array(BLOCK);
const highCodes = new Uint8Array(BLOCK);

/** Codes of a block without signs; gives their squared error in units of the values. */
function encodeBlock(
  values: Float32Array,
  begin: number,
  length: number,
  inverse: number,
  codes: Uint8Array,
): number {
  let sum = 0;
  for (let i = 0; i < length; i++) {
    const magnitude = Math.abs(values[begin + i]) * inverse;
    const code = nearest(magnitude);
    codes[i] = code;
    const difference = magnitude - MAGNITUDES[code];
    sum += difference * difference;
  }
  return sum / (inverse * inverse);
}

/**
 * Rounds `columns` values to e2m1. A block's scale brings its largest value to [4, 8), as the specification says, or to
 * [2, 4) where that has the smaller squared error (6 is the largest code). Values that are MXFP4 already keep their bits.
 * @param bits the same values' bits
 * @param at counts u32, `scaleAt` bytes
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
    const length = Math.min(BLOCK, columns - start);
    let largest = 0;
    for (let i = begin; i < begin + length; i++) {
      // Without their sign, bits of floats are in the order of their magnitudes.
      const magnitude = bits[i] & 0x7fffffff;
      if (magnitude > largest) largest = magnitude;
    }
    // The exponent of the largest value, less the 2 of e2m1's largest. Scales whose bits f32 has no normal value for are left out.
    const low = Math.min(254, Math.max(1, (largest >>> 23) - 2));
    const lowError = encodeBlock(values, begin, length, 2 ** (127 - low), lowCodes);
    let scale = low;
    let codes = lowCodes;
    if (lowError > 0 && low < 254) {
      const error = encodeBlock(values, begin, length, 2 ** (126 - low), highCodes);
      if (error < lowError) {
        scale = low + 1;
        codes = highCodes;
      }
    }
    scales[scaleAt++] = scale;
    for (let i = 0; i < length; i += 8) {
      let word = 0;
      for (let j = 0; j < 8; j++) {
        word |= (codes[i + j] | ((bits[begin + i + j] >>> 31) << 3)) << (4 * j);
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
