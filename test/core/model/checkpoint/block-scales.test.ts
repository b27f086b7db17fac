import assert from "node:assert/strict";
import { test } from "node:test";

import { decodeFp8, decodeMxfp4 } from "../../../../core/model/checkpoint/block-scales.ts";
import { toF32 } from "../../../../core/tensor.ts";

test("FP8 E4M3 bytes have the values of the format", () => {
  // OCP 8-bit floating point, 1.0, table 1: largest 448, smallest normal 2^-6, smallest 2^-9, no infinities.
  const known: [byte: number, value: number][] = [
    [0x00, 0],
    [0x80, -0],
    [0x01, 2 ** -9],
    [0x07, 7 * 2 ** -9],
    [0x08, 2 ** -6],
    [0x0f, 1.875 * 2 ** -6],
    [0x37, 0.9375],
    [0x38, 1],
    [0x39, 1.125],
    [0xc4, -3],
    [0x7e, 448],
    [0xfe, -448],
    [0x7f, Number.NaN],
    [0xff, Number.NaN],
  ];
  const bytes = Uint8Array.from(known, ([byte]) => byte);
  const decoded = decodeFp8(bytes, Float32Array.of(1), 1, bytes.length);
  assert.deepEqual(
    [...decoded],
    known.map(([, value]) => value),
  );
});

test("FP8 blocks of 128×128 have a scale each, the partial ones at the edges as well", () => {
  for (const [rows, columns] of [
    [1, 1],
    [128, 128],
    [130, 300],
    [257, 64],
  ]) {
    const across = Math.ceil(columns / 128);
    const scales = Float32Array.from({ length: Math.ceil(rows / 128) * across }, (_, i) => i + 0.1);
    const values = new Uint8Array(rows * columns).fill(0x40); // 2
    const decoded = decodeFp8(values, scales, rows, columns);
    for (let row = 0; row < rows; row++) {
      for (let column = 0; column < columns; column++) {
        const scale = scales[(row >> 7) * across + (column >> 7)];
        const value = decoded[row * columns + column];
        assert.ok(value === Math.fround(2 * scale), `${row},${column} of ${rows}×${columns}`);
      }
    }
  }
});

test("MXFP4 has the even value in the low half, and a power of two per 32 values", () => {
  const magnitudes = [0, 0.5, 1, 1.5, 2, 3, 4, 6];
  const codes = [...magnitudes, ...magnitudes.map((value) => -value)];
  // Bytes 0x10, 0x32, …: codes in order, twice per group of 32.
  const block = Array.from({ length: 16 }, (_, i) => ((2 * i) % 16) | (((2 * i + 1) % 16) << 4));
  const scales = Uint8Array.of(127, 130, 0, 252, 255);
  const blocks = Uint8Array.from(Array.from(scales, () => block).flat());
  const decoded = toF32({ dtype: "BF16", shape: [], bytes: decodeMxfp4(blocks, scales) });
  const expected = Array.from(scales).flatMap((scale) =>
    [...codes, ...codes].map((value) => (scale === 255 ? Number.NaN : value * 2 ** (scale - 127))),
  );
  assert.deepEqual([...decoded], expected);
});
