/** Random matrices in every weight format, and what their words stand for, decoded one weight at a time. */

import {
  type ExpertFormat,
  formatLayout,
  rowScaleWords,
  rowWords,
} from "../../core/expert-format.ts";
import { randomValues } from "./gpu-fixture.ts";

/** A matrix as a device gets it, and the values that it stands for. */
export interface RandomMatrix {
  readonly weights: Uint32Array;
  readonly scales: Uint32Array;
  /** [rows, k] */
  readonly exact: Float32Array;
}

/** Magnitudes of e2m1 by their three low bits. */
const E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6];

/** Any word: bytes of a sequence that a seed gives. */
function randomWords(count: number, seed: number): Uint32Array<ArrayBuffer> {
  const high = randomValues(count, seed);
  const low = randomValues(count, seed + 1000);
  return Uint32Array.from(high, (value, i) => {
    const of = (v: number) => Math.floor((v + 1) * 32767);
    return ((of(value) << 16) | of(low[i])) >>> 0;
  });
}

function wordsOf(values: Float32Array): Uint32Array<ArrayBuffer> {
  return new Uint32Array(new Float32Array(values).buffer);
}

function halvesOf(values: Float32Array): Uint32Array<ArrayBuffer> {
  const padded = new Float16Array(Math.ceil(values.length / 2) * 2);
  padded.set(values);
  return new Uint32Array(padded.buffer);
}

/** Scales between 0.005 and 0.015 of each row, one f16 per group, padded to an even count. */
function halfScales(rows: number, groups: number, seed: number): Uint32Array<ArrayBuffer> {
  const words = Math.ceil(groups / 2);
  const scales = new Uint32Array(rows * words);
  for (let row = 0; row < rows; row++) {
    const values = randomValues(groups, seed + row, 0.005).map((v) => v + 0.01);
    scales.set(halvesOf(values), row * words);
  }
  return scales;
}

/** A matrix of random weights of about a tenth's size. */
export function randomMatrix(
  format: ExpertFormat,
  rows: number,
  k: number,
  seed: number,
): RandomMatrix {
  const { bits, group } = formatLayout(format);
  const scaleWords = rowScaleWords(format, k);
  let weights: Uint32Array<ArrayBuffer>;
  let scales: Uint32Array<ArrayBuffer> = new Uint32Array(0);
  if (format === "f32") {
    weights = wordsOf(randomValues(rows * k, seed, 0.1));
  } else if (format === "f16") {
    weights = halvesOf(randomValues(rows * k, seed, 0.1));
  } else {
    weights = randomWords(rows * rowWords(format, k), seed);
    if (format === "int8") {
      scales = wordsOf(randomValues(rows, seed + 1, 0.0005).map((v) => v + 0.001));
    } else if (format === "mxfp4") {
      // Exponents of 2^-7 to 2^-4.
      scales = randomWords(rows * scaleWords, seed + 1).map(
        (word) => ((word & 0x03030303) + 0x78787878) >>> 0,
      );
    } else {
      scales = halfScales(rows, Math.ceil(k / (group ?? k)), seed + 1);
    }
  }
  const exact = new Float32Array(rows * k);
  const words = rowWords(format, k);
  for (let row = 0; row < rows; row++) {
    for (let i = 0; i < k; i++) {
      const bit = i * bits;
      const raw =
        (weights[row * words + (bit >> 5)] >>> (bit & 31)) & (bits === 32 ? -1 : 2 ** bits - 1);
      exact[row * k + i] = decode(format, raw) * scaleOf(format, scales, row * scaleWords, row, i);
    }
  }
  return { weights, scales, exact };
}

const view = new DataView(new ArrayBuffer(4));

function f16(bits: number): number {
  view.setUint16(0, bits);
  return view.getFloat16(0);
}

function f32(bits: number): number {
  view.setUint32(0, bits >>> 0);
  return view.getFloat32(0);
}

function decode(format: ExpertFormat, raw: number): number {
  if (format === "f32") return f32(raw);
  if (format === "f16") return f16(raw);
  if (format === "int8") return (raw << 24) >> 24;
  if (format === "mxfp4") return (raw & 8 ? -1 : 1) * E2M1[raw & 7];
  return raw - 8;
}

function scaleOf(
  format: ExpertFormat,
  scales: Uint32Array,
  at: number,
  row: number,
  column: number,
): number {
  const { group } = formatLayout(format);
  if (format === "int8") return f32(scales[row]);
  if (group === undefined) return 1;
  const index = Math.floor(column / group);
  if (format === "mxfp4")
    return 2 ** (((scales[at + (index >> 2)] >>> (8 * (index & 3))) & 255) - 127);
  return f16((scales[at + (index >> 1)] >>> (16 * (index & 1))) & 0xffff);
}
