import assert from "node:assert/strict";
import { describe, it } from "node:test";

import fc from "fast-check";

import { packInt8Rows, roundRowsInt8, unpackInt8Rows } from "../../core/int8-rows.ts";

const row = fc
  .tuple(
    fc.array(fc.float({ noNaN: true, min: -1, max: 1 }), { minLength: 8, maxLength: 8 }),
    fc.integer({ min: -60, max: 60 }),
  )
  .map(([values, exponent]) => values.map((value) => value * 2 ** exponent));
const rows = fc
  .array(row, { minLength: 1, maxLength: 5 })
  .map((all) => Float32Array.from(all.flat()));

describe("rows rounded to int8", () => {
  it("are off by half a step at most, a step being 1/127 of the row's largest magnitude", () => {
    fc.assert(
      fc.property(rows, (x) => {
        const rounded = roundRowsInt8(x, 8);
        for (let start = 0; start < x.length; start += 8) {
          const largest = Math.max(...x.subarray(start, start + 8).map(Math.abs));
          const most = largest < 1e-30 ? largest : (largest / 127 / 2) * 1.001;
          for (let i = start; i < start + 8; i++) {
            assert.ok(Math.abs(rounded[i] - x[i]) <= most, `${x[i]} → ${rounded[i]}`);
          }
        }
      }),
    );
  });

  it("go through int8 and scales without another change, and stay when rounded again", () => {
    fc.assert(
      fc.property(rows, (x) => {
        const rounded = roundRowsInt8(x, 8).map((value) => value + 0);
        const packed = packInt8Rows(rounded, 8);
        assert.ok(packed !== undefined);
        assert.deepEqual(unpackInt8Rows(packed, 8), rounded);
        assert.deepEqual(
          roundRowsInt8(rounded, 8).map((value) => value + 0),
          rounded,
        );
      }),
    );
  });

  it("use all of int8: the largest magnitude of a row is 127 steps", () => {
    const packed = packInt8Rows(roundRowsInt8(Float32Array.of(0.3, -0.7, 0.1, 0), 4), 4);
    assert.deepEqual([...(packed?.values ?? [])], [54, -127, 18, 0]);
  });

  it("that are all zeros stay so", () => {
    assert.deepEqual(packInt8Rows(roundRowsInt8(new Float32Array(4), 4), 4), {
      values: new Int8Array(4),
      scales: new Float32Array(1),
    });
  });

  it("leave a row alone that holds no finite magnitude, and such rows are not packed", () => {
    for (const value of [Number.NaN, Infinity, -Infinity, 2e38]) {
      const x = Float32Array.of(1, value, -0.33, 0.5);
      assert.deepEqual(roundRowsInt8(x, 4), x);
      assert.equal(packInt8Rows(x, 4), undefined);
    }
  });
});

it("rows that were not rounded are not packed", () => {
  assert.equal(packInt8Rows(Float32Array.of(1, 0.3337), 2), undefined);
});
