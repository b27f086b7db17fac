/** Weights into int8 with a scale per row, int4 with a scale per group of columns, and back. */

/**
 * Rounds `columns` values to int8; gives the scale.
 * The scale that spans the largest value decides the integers; for these, the one with the least squared error is kept.
 */
export function packInt8Row(
  values: Float32Array,
  from: number,
  columns: number,
  out: Int8Array,
  at: number,
): number {
  let largest = 0;
  for (let i = from; i < from + columns; i++) {
    const magnitude = Math.abs(values[i]);
    if (magnitude > largest) largest = magnitude;
  }
  const inverse = 127 / largest;
  if (!Number.isFinite(inverse)) {
    out.fill(0, at, at + columns);
    return 0;
  }
  let product = 0;
  let squares = 0;
  for (let i = 0; i < columns; i++) {
    const value = values[from + i];
    // Truncating what was shifted to above zero rounds to nearest.
    const q = ((value * inverse + 128.5) | 0) - 128;
    out[at + i] = q;
    product += value * q;
    squares += q * q;
  }
  return product / squares;
}

/** Writes the values of a row of int8. */
export function unpackInt8Row(
  words: Uint32Array,
  at: number,
  columns: number,
  scale: number,
  out: Float32Array,
): void {
  for (let i = 0; i < columns; i += 4) {
    const word = words[at + i / 4];
    out[i] = ((word << 24) >> 24) * scale;
    out[i + 1] = ((word << 16) >> 24) * scale;
    out[i + 2] = ((word << 8) >> 24) * scale;
    out[i + 3] = (word >> 24) * scale;
  }
}

/**
 * Where the value of largest magnitude of a group lands among the integers, tried one after the other: at −8, so that
 * the whole range is used, and around it, as clipping one value may cost less than coarser steps for the rest.
 */
const REACHES = [-8, -7.5, -7, -8.5, -9, -6.5, 7, 7.5];

/** A trifle more, as in packing.wat: a reach between two integers takes the value to the farther one. */
const FARTHER = 1 + 2 ** -14;

/** Rounds `columns` values to int4 in groups. `at` counts u32, `scaleAt` f16. */
export function packInt4Row(
  values: Float32Array,
  from: number,
  columns: number,
  group: number,
  out: Uint32Array,
  at: number,
  scales: Float16Array,
  scaleAt: number,
): void {
  for (let start = 0; start < columns; start += group) {
    const begin = from + start;
    const end = from + Math.min(start + group, columns);
    const wanted = groupScale(values, begin, end);
    scales[scaleAt] = wanted;
    const scale = scales[scaleAt++];
    const inverse = scale === 0 ? 0 : 1 / scale;
    for (let i = begin; i < end; i += 8) {
      let word = 0;
      for (let j = 0; j < 8; j++) word |= nibble(values[i + j] * inverse) << (4 * j);
      out[at++] = word;
    }
  }
}

/** The nearest of −8 … 7, plus 8. */
function nibble(value: number): number {
  const q = (value + 8.5) | 0;
  return q < 0 ? 0 : q > 15 ? 15 : q;
}

/** The scale with the least squared error among those that the REACHES lead to. */
function groupScale(values: Float32Array, begin: number, end: number): number {
  let least = 0;
  let largest = 0;
  for (let i = begin; i < end; i++) {
    if (values[i] < least) least = values[i];
    if (values[i] > largest) largest = values[i];
  }
  const extreme = -least > largest ? least : largest;
  if (extreme === 0) return 0;
  let best = 0;
  let bestGain = 0;
  for (let r = 0; r < REACHES.length; r++) {
    const inverse = (REACHES[r] * FARTHER) / extreme;
    let product = 0;
    let squares = 0;
    for (let i = begin; i < end; i++) {
      const value = values[i];
      const q = nibble(value * inverse) - 8;
      product += value * q;
      squares += q * q;
    }
    // With these integers, scale product/squares leaves the error Σ value² − product²/squares.
    const gain = (product * product) / squares;
    if (gain > bestGain) {
      bestGain = gain;
      best = product / squares;
    }
  }
  return best;
}

/** Writes the values of a row of int4; scales are f16 pairs. */
export function unpackInt4Row(
  words: Uint32Array,
  at: number,
  columns: number,
  group: number,
  scales: Uint32Array,
  scaleAt: number,
  out: Float32Array,
): void {
  const halves = new Float16Array(scales.buffer, scales.byteOffset);
  for (let i = 0; i < columns; i += 8) {
    const scale = halves[2 * scaleAt + Math.floor(i / group)];
    const word = words[at + i / 8];
    for (let j = 0; j < 8; j++) out[i + j] = (((word >>> (4 * j)) & 15) - 8) * scale;
  }
}
