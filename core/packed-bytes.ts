/** A packed expert as bytes, one part after the other: how it travels between shards and lies in host memory. */

import type { ExpertSizes } from "./expert-device.ts";
import { type ExpertFormat, rowScaleWords, rowWords, type PackedExpert } from "./expert-format.ts";
import { expertBytes, expertFrom } from "./weights.ts";

/** The arrays of an expert: weights and scales of gate, up and down, then the biases, where there are any. */
export function partsOf({
  gate,
  up,
  down,
  biases,
}: PackedExpert): (Uint32Array<ArrayBuffer> | Float32Array<ArrayBuffer>)[] {
  return [
    ...[gate, up, down].flatMap(({ weights, scales }) => [weights, scales]),
    ...(biases === undefined ? [] : [biases.gate, biases.up, biases.down]),
  ];
}

/** The expert whose parts these bytes are, as views of them; they begin at a multiple of 4. Throws RangeError where there are not as many as it has. */
export function expertOf(
  sizes: ExpertSizes,
  format: ExpertFormat,
  bytes: Uint8Array<ArrayBuffer>,
): PackedExpert {
  const expected = expertBytes(sizes, format);
  if (bytes.length !== expected) {
    throw new RangeError(`${bytes.length} bytes of an expert in ${format}, expected ${expected}`);
  }
  const { buffer } = bytes;
  let at = bytes.byteOffset;
  const words = (length: number): Uint32Array<ArrayBuffer> => {
    const part = new Uint32Array(buffer, at, length);
    at += part.byteLength;
    return part;
  };
  return expertFrom(sizes, format, {
    matrix: (rows, columns) => ({
      weights: words(rows * rowWords(format, columns)),
      scales: words(rows * rowScaleWords(format, columns)),
    }),
    bias: (length) => new Float32Array(buffer, words(length).byteOffset, length),
  });
}
