/** Rotary positions (RoPE, arXiv 2104.09864), with YaRN's interpolation where a model has it. */

import type { RopeConfig, YarnConfig } from "../model/config.ts";

/** Radians per position of each pair of columns [dim/2]. */
export function ropeFrequencies({ dim, theta, yarn }: RopeConfig): Float32Array {
  const plain = Float32Array.from({ length: dim / 2 }, (_, i) => theta ** ((-2 * i) / dim));
  return yarn === undefined ? plain : interpolated(plain, dim, theta, yarn);
}

/** Pairs that turn often within the original positions keep their frequency, those that turn seldom have it divided. */
function interpolated(
  plain: Float32Array,
  dim: number,
  theta: number,
  { factor, originalPositions, betaFast, betaSlow, truncate }: YarnConfig,
): Float32Array {
  /** The pair, as a real number, that turns this many times within the original positions. */
  const pairOf = (turns: number) =>
    (dim * Math.log(originalPositions / (turns * 2 * Math.PI))) / (2 * Math.log(theta));
  const [first, last] = [pairOf(betaFast), pairOf(betaSlow)];
  const from = Math.max(0, truncate ? Math.floor(first) : first);
  const to = Math.min(dim - 1, truncate ? Math.ceil(last) : last);
  // As the vendors have it, where the ramp has no length.
  const length = from === to ? 0.001 : to - from;
  return plain.map((frequency, i) => {
    const ramp = Math.min(1, Math.max(0, (i - from) / length));
    return (ramp * frequency) / factor + (1 - ramp) * frequency;
  });
}

/**
 * Cosine and sine of each position and pair, times the magnitude: [positions, dim/2, 2], angles rounded as float32
 * arithmetic rounds.
 */
export function ropeTable(positions: number, rope: RopeConfig): Float32Array {
  const { dim, magnitude } = rope;
  const table = new Float32Array(positions * dim);
  const frequencies = ropeFrequencies(rope);
  for (let position = 0; position < positions; position++) {
    for (let i = 0; i < dim / 2; i++) {
      const angle = Math.fround(position * frequencies[i]);
      table[position * dim + 2 * i] = Math.cos(angle) * magnitude;
      table[position * dim + 2 * i + 1] = Math.sin(angle) * magnitude;
    }
  }
  return table;
}

/**
 * Turns the last rope.dim columns of every head of x [rows, heads · headWidth] by the row's position, in place:
 * pairs (i, i + dim/2), or (2i, 2i + 1) where they are interleaved.
 */
export function rotate(
  x: Float32Array,
  positions: Uint32Array,
  table: Float32Array,
  { dim, interleaved }: Pick<RopeConfig, "dim" | "interleaved">,
  headWidth: number = dim,
): void {
  const width = x.length / positions.length;
  const [step, apart] = interleaved ? [2, 1] : [1, dim / 2];
  positions.forEach((position, row) => {
    for (let head = row * width; head < (row + 1) * width; head += headWidth) {
      for (let i = 0; i < dim / 2; i++) {
        const cos = table[position * dim + 2 * i];
        const sin = table[position * dim + 2 * i + 1];
        const at = head + headWidth - dim + i * step;
        const a = x[at];
        const b = x[at + apart];
        x[at] = a * cos - b * sin;
        x[at + apart] = b * cos + a * sin;
      }
    }
  });
}
