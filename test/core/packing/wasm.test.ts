import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { test } from "node:test";

import wabt from "wabt";

import { emptyMatrix, type ExpertFormat } from "../../../core/expert-format.ts";
import { packStagedInt4, stageRows } from "../../../core/packing/wasm.ts";
import { packRows, unpackMatrix } from "../../../core/packing/quantize.ts";
import {
  bytesOf,
  type DType,
  F16_MAX,
  f32ToF16,
  type HostTensor,
  toF32,
} from "../../../core/tensor.ts";
import { testValues } from "../../../bench/rig/expert-reference.ts";

const core = new URL("../../../core/packing/", import.meta.url);

function matrix(values: Float32Array, columns: number): HostTensor {
  return { shape: [values.length / columns, columns], dtype: "F32", bytes: bytesOf(values) };
}

/** Values with the shape of trained weights: most are small, few are not. */
function weights(count: number, seed: number): Float32Array {
  return testValues(count, seed).map((value) => 0.05 * value ** 3);
}

function packed(values: Float32Array, columns: number, format: ExpertFormat) {
  const out = emptyMatrix(format, values.length / columns, columns);
  packStagedInt4(format, stageRows(matrix(values, columns)), columns, out, 0);
  return out;
}

function squaredError(exact: Float32Array, actual: Float32Array): number {
  return exact.reduce((sum, value, i) => sum + (value - actual[i]) ** 2, 0);
}

test("the binary is what packing.wat assembles to", async () => {
  const source = await readFile(new URL("packing.wat", core), "utf8");
  const features = { simd: true, relaxed_simd: true, multi_value: true };
  const module = (await wabt()).parseWat("packing.wat", source, features);
  const { buffer } = module.toBinary({});
  assert.deepEqual(Buffer.from(buffer), await readFile(new URL("packing.wasm", core)));
});

test("rows of every dtype become their f32 values, with the largest magnitude", () => {
  const values = testValues(3 * 40, 5);
  values[77] = -3;
  const bf16 = Uint16Array.from(new Uint32Array(values.buffer), (bits) => bits >>> 16);
  const cases: [DType, ArrayBufferView][] = [
    ["F32", values],
    ["F16", f32ToF16(values)],
    ["BF16", bf16],
  ];
  for (const [dtype, data] of cases) {
    // At an odd offset, as a view of a larger read may be.
    const bytes = new Uint8Array(data.byteLength + 1).subarray(1);
    bytes.set(bytesOf(data));
    const rows: HostTensor = { shape: [3, 40], dtype, bytes };
    const staged = stageRows(rows);
    assert.deepEqual(staged.values, toF32(rows), dtype);
    assert.equal(staged.largest, 3, dtype);
  }
  for (const value of [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY]) {
    const rows = new Float32Array(16).fill(value, 11, 12);
    assert.equal(stageRows(matrix(rows, 16)).largest, Math.abs(value));
  }
});

test("int4 has no larger error than the plain loops, within a thousandth, whole groups or not", () => {
  for (const format of ["int4-g32", "int4-g64", "int4-g128"] as const) {
    for (const columns of [8, 40, 72, 128, 1408]) {
      const rows = 9;
      const values = weights(rows * columns, columns);
      const plain = emptyMatrix(format, rows, columns);
      packRows(format, values, columns, plain, 0);
      const expected = squaredError(values, unpackMatrix(format, plain, columns));
      const actual = squaredError(
        values,
        unpackMatrix(format, packed(values, columns, format), columns),
      );
      assert.ok(
        actual <= expected * 1.001,
        `${format}, ${columns} columns: ${actual}, plain loops ${expected}`,
      );
    }
  }
});

test("int4 gives back values that are int4 already, zeros, the largest and the smallest", () => {
  const columns = 40;
  const integers = Float32Array.from({ length: 2 * columns }, (_, i) => (i % 16) - 8);
  for (const scale of [1, 2 ** -10, F16_MAX / 16, 2 ** -20, -0.5]) {
    const values = integers.map((value) => value * scale);
    const unpacked = unpackMatrix("int4-g32", packed(values, columns, "int4-g32"), columns);
    // A zero may have either sign.
    const wrong = values.findIndex((value, i) => value !== unpacked[i]);
    assert.equal(wrong, -1, `${values[wrong]} · ${scale}: ${unpacked[wrong]}`);
  }
  for (const value of [0, 1e-30, -1e-40]) {
    const values = new Float32Array(columns).fill(value);
    const unpacked = unpackMatrix("int4-g64", packed(values, columns, "int4-g64"), columns);
    assert.ok(
      unpacked.every((restored) => Math.abs(restored) === 0),
      `${value}`,
    );
  }
  const largest = Float32Array.of(7 * F16_MAX, ...new Float32Array(7));
  const [restored] = unpackMatrix("int4-g32", packed(largest, 8, "int4-g32"), 8);
  assert.ok(Math.abs(restored / (7 * F16_MAX) - 1) < 1e-3, `${restored}`);
});

test("the half word that fills up a row's scales is zero, whatever was packed before", () => {
  packed(weights(128 * 8, 1).fill(1), 128, "int4-g32");
  const { scales } = packed(weights(4 * 96, 2), 96, "int4-g32");
  assert.equal(scales.length, 4 * 2, "three scales a row, in two words");
  for (let row = 0; row < 4; row++) assert.equal(scales[2 * row + 1] >>> 16, 0);
});

test("rows are packed the same whatever rows they are packed with", () => {
  const columns = 72;
  const values = weights(5 * columns, 3);
  const whole = packed(values, columns, "int4-g64");
  const apart = emptyMatrix("int4-g64", 5, columns);
  for (let row = 0; row < 5; row++) {
    const own = values.slice(row * columns, (row + 1) * columns);
    packStagedInt4("int4-g64", stageRows(matrix(own, columns)), columns, apart, row);
  }
  assert.deepEqual(apart, whole);
});
