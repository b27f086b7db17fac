/** Decoding of weights whose blocks share a scale: FP8 E4M3 in blocks of 128×128, and MXFP4. */

/** Rows and columns of a block of FP8 weights that share a scale (DeepSeek-V3, arXiv 2412.19437 §3.3). */
export const FP8_BLOCK = 128;
/** Values of a row of MXFP4 weights that share a scale (OCP Microscaling Formats, 1.0). */
export const MXFP4_GROUP = 32;
/** Bytes of such a group. */
export const MXFP4_GROUP_BYTES = MXFP4_GROUP / 2;

/** Value of every FP8 E4M3 byte: sign, 4 bits of exponent with bias 7, 3 of mantissa; no infinities, all ones are NaN. */
const E4M3 = Float32Array.from({ length: 256 }, (_, byte) => {
  const exponent = (byte >> 3) & 15;
  const mantissa = byte & 7;
  const sign = byte < 128 ? 1 : -1;
  if (exponent === 15 && mantissa === 7) return Number.NaN;
  return sign * (exponent === 0 ? mantissa * 2 ** -9 : (8 + mantissa) * 2 ** (exponent - 10));
});

/** Value of every FP4 E2M1 code: sign, 2 bits of exponent, 1 of mantissa. */
const E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0, -0.5, -1, -1.5, -2, -3, -4, -6];

/**
 * FP8 weights times the scale of their block, in f32.
 * @param values [rows, columns] E4M3
 * @param scales [ceil(rows / 128), ceil(columns / 128)]; blocks at the edges are partial
 */
export function decodeFp8(
  values: Uint8Array,
  scales: Float32Array,
  rows: number,
  columns: number,
): Float32Array<ArrayBuffer> {
  const decoded = new Float32Array(rows * columns);
  const scalesPerRow = Math.ceil(columns / FP8_BLOCK);
  for (let row = 0; row < rows; row++) {
    const firstScale = Math.floor(row / FP8_BLOCK) * scalesPerRow;
    for (let block = 0; block < scalesPerRow; block++) {
      const scale = scales[firstScale + block];
      const begin = row * columns + block * FP8_BLOCK;
      const end = Math.min(begin + FP8_BLOCK, (row + 1) * columns);
      for (let i = begin; i < end; i++) decoded[i] = E4M3[values[i]] * scale;
    }
  }
  return decoded;
}

/** Two BF16 values, the low half first, by scale · 256 + byte; made at first use. */
let pairs: Uint32Array | undefined;

function mxfp4Pairs(): Uint32Array {
  const table = new Uint32Array(65536);
  const value = new Float32Array(1);
  const bits = new Uint32Array(value.buffer);
  const half = (code: number, scale: number) => {
    // E8M0: a power of two with bias 127, and one code for NaN. Three bits of mantissa fit BF16 down to its smallest.
    value[0] = scale === 255 ? Number.NaN : E2M1[code] * 2 ** (scale - 127);
    return bits[0] >>> 16;
  };
  for (let scale = 0; scale < 256; scale++) {
    const halves = E2M1.map((_, code) => half(code, scale));
    for (let byte = 0; byte < 256; byte++) {
      table[scale * 256 + byte] = halves[byte & 15] | (halves[byte >> 4] << 16);
    }
  }
  return table;
}

/**
 * MXFP4 weights as BF16, exactly, as bytes [groups · 32] of BF16.
 * @param blocks [groups, 16]: 32 values, the even one in the low half of a byte
 * @param scales [groups] powers of two, 127 above their exponent
 */
export function decodeMxfp4(blocks: Uint8Array, scales: Uint8Array): Uint8Array<ArrayBuffer> {
  const table = (pairs ??= mxfp4Pairs());
  const decoded = new Uint32Array(blocks.length);
  for (let group = 0; group < scales.length; group++) {
    const row = scales[group] * 256;
    const end = (group + 1) * MXFP4_GROUP_BYTES;
    for (let i = group * MXFP4_GROUP_BYTES; i < end; i++) decoded[i] = table[row + blocks[i]];
  }
  return new Uint8Array(decoded.buffer);
}
