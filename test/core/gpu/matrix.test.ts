import assert from "node:assert/strict";
import { test } from "node:test";

import { columnsOf, rowSlices } from "../../../core/gpu/matrix.ts";
import { bytesOf, toF32 } from "../../../core/tensor.ts";

test("a matrix that fits a binding is one slice, whatever its rows", () => {
  assert.deepEqual(rowSlices(49156, 2048, 128 * 2 ** 20), [{ firstRow: 0, rows: 49156 }]);
});

test("slices are alike, begin at multiples of 64, and hold all rows", () => {
  // The embedding of DeepSeek-V2-Lite in f16, in bindings of 128 MiB.
  const slices = rowSlices(102400, 4096, 128 * 2 ** 20);
  assert.deepEqual(slices, [
    { firstRow: 0, rows: 25600 },
    { firstRow: 25600, rows: 25600 },
    { firstRow: 51200, rows: 25600 },
    { firstRow: 76800, rows: 25600 },
  ]);
  for (const [rows, rowBytes, maxBytes] of [
    [391, 256, 20_000],
    [1000, 4096, 4096],
    [65, 1, 64],
  ]) {
    let next = 0;
    for (const { firstRow, rows: number } of rowSlices(rows, rowBytes, maxBytes)) {
      assert.equal(firstRow, next);
      assert.equal(firstRow % 64, 0);
      assert.ok(number > 0 && number * rowBytes <= Math.max(maxBytes, 64 * rowBytes));
      next += number;
    }
    assert.equal(next, rows);
  }
});

test("columns of a matrix are those of each row", () => {
  const values = Float32Array.from({ length: 15 }, (_, i) => i);
  const part = columnsOf({ shape: [3, 5], dtype: "F32", bytes: bytesOf(values) }, 1, 2);
  assert.deepEqual(part.shape, [3, 2]);
  assert.deepEqual([...toF32(part)], [1, 2, 6, 7, 11, 12]);
});
