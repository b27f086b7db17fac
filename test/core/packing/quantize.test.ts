import assert from "node:assert/strict";
import { describe, it, test } from "node:test";

import fc from "fast-check";

import { emptyMatrix, EXPERT_FORMATS, type ExpertFormat } from "../../../core/expert-format.ts";
import { packRows, unpackMatrix } from "../../../core/packing/quantize.ts";
import { packMatrix, WeightOverflowError } from "../../../core/weights.ts";
import { bytesOf } from "../../../core/tensor.ts";
import { testValues } from "../../../bench/rig/expert-reference.ts";

/** Root of (sum of squared differences / sum of the exact values' squares); 0 where both are 0. */
function relativeRmsError(exact: ArrayLike<number>, actual: ArrayLike<number>): number {
  let difference = 0;
  let size = 0;
  for (let i = 0; i < exact.length; i++) {
    difference += (exact[i] - actual[i]) ** 2;
    size += exact[i] ** 2;
  }
  return difference === 0 ? 0 : Math.sqrt(difference / size);
}

function pack(format: ExpertFormat, values: Float32Array, columns: number) {
  const packed = emptyMatrix(format, values.length / columns, columns);
  packRows(format, values, columns, packed, 0);
  return packed;
}

/** Values with the bell shape that weights have, by Box and Muller. */
function bellValues(count: number, seed: number): Float32Array {
  const draws = testValues(2 * count, seed).map((value) => (value + 1) / 2);
  return Float32Array.from({ length: count }, (_, i) => {
    const radius = Math.sqrt(-2 * Math.log(1 - draws[2 * i]));
    return radius * Math.cos(2 * Math.PI * draws[2 * i + 1]);
  });
}

const hex = (words: Uint32Array) => Array.from(words, (word) => word.toString(16));

describe("the layout of", () => {
  it("f16 is two per u32, the first in the low half", () => {
    const { weights, scales } = pack("f16", Float32Array.of(1, -2, 0.5, 0, 0, 0, 0, 65504), 8);
    assert.deepEqual(hex(weights), ["c0003c00", "3800", "0", "7bff0000"]);
    assert.equal(scales.length, 0);
  });

  it("int8 is four per u32 in two's complement, with an f32 scale per row", () => {
    // The row's largest value is 127 steps of 0.5, and every value whole steps.
    const row = [63.5, -0.5, 0, 1, -63.5, 2, 0.5, -1];
    const { weights, scales } = pack(
      "int8",
      Float32Array.from([...row, ...row.map((v) => 2 * v)]),
      8,
    );
    assert.deepEqual(hex(weights.subarray(0, 2)), ["200ff7f", "fe010481"]);
    assert.deepEqual(weights.subarray(2), weights.subarray(0, 2));
    assert.deepEqual(new Float32Array(scales.buffer), Float32Array.of(0.5, 1));
  });

  it("int4 is eight per u32, plus 8, with an f16 scale per group and rows padded to even counts", () => {
    // Two groups, the second partial: whole steps of 0.25 from −8 on, then of −2.
    const steps = [-8, 7, 0, 1, -1, 3, -4, 5];
    const row = [
      ...Array.from({ length: 4 }, () => steps)
        .flat()
        .map((v) => v * 0.25),
      ...steps.map((v) => v * -2),
    ];
    const values = Float32Array.from([...row, ...row]);
    const { weights, scales } = pack("int4-g32", values, 40);
    assert.deepEqual(
      hex(weights.subarray(0, 5)),
      Array.from({ length: 5 }, () => "d4b798f0"),
    );
    assert.deepEqual(weights.subarray(5), weights.subarray(0, 5));
    assert.deepEqual(hex(scales), ["c0003400", "c0003400"]);
    const three = pack("int4-g32", new Float32Array(2 * 72).fill(-8), 72);
    assert.deepEqual(hex(three.scales), ["3c003c00", "3c00", "3c003c00", "3c00"]);
    assert.equal(pack("int4-g128", new Float32Array(136), 136).scales.length, 1);
    assert.equal(pack("int4-g64", new Float32Array(136), 136).scales.length, 2);
  });

  it("mxfp4 is e2m1 as OCP's tables have it, with a power of two per 32 and rows padded to words", () => {
    const codes = [0, 0.5, 1, 1.5, 2, 3, 4, 6];
    const block = [...codes, ...codes.map((v) => -v), ...codes, ...codes];
    const row = [...block.map((v) => v * 2), ...codes.map((v) => v / 1024)];
    const { weights, scales } = pack("mxfp4", Float32Array.from([...row, ...row]), 40);
    const words = ["76543210", "fedcba98", "76543210", "76543210", "76543210"];
    assert.deepEqual(hex(weights), [...words, ...words]);
    // 127 + 1, then 127 − 10.
    assert.deepEqual(hex(scales), ["7580", "7580"]);
  });
});

describe("quantised weights", () => {
  const exactOf: Readonly<Record<ExpertFormat, number>> = {
    f32: 0,
    f16: 3e-4,
    int8: 0.009,
    "int4-g32": 0.083,
    "int4-g64": 0.091,
    "int4-g128": 0.098,
    mxfp4: 0.115,
  };

  for (const format of EXPERT_FORMATS) {
    it(`in ${format} are off by at most ${exactOf[format]} of a bell curve's spread`, () => {
      const values = bellValues(64 * 512, 3);
      const error = relativeRmsError(values, unpackMatrix(format, pack(format, values, 512), 512));
      assert.ok(error <= exactOf[format], String(error));
      if (format !== "f32") assert.ok(error > exactOf[format] / 3, String(error));
    });
  }

  it("keep to the nearest step of their scale, whatever the values", () => {
    const groups: [ExpertFormat, number][] = [
      ["int8", 1e9],
      ["int4-g32", 32],
      ["int4-g64", 64],
      ["int4-g128", 128],
    ];
    const value = fc.float({ min: -1000, max: 1000, noNaN: true });
    fc.assert(
      fc.property(fc.array(value, { minLength: 8, maxLength: 200 }), (list) => {
        const columns = list.length - (list.length % 8);
        const values = Float32Array.from(list.slice(0, columns));
        for (const [format, group] of groups) {
          const kept = unpackMatrix(format, pack(format, values, columns), columns);
          for (let at = 0; at < columns; at += group) {
            const part = values.subarray(at, at + group);
            const largest = part.reduce((max, v) => Math.max(max, Math.abs(v)), 0);
            // Scales reach from 6.8 to 9.5 steps for the largest value; f16 has none below 2^-25.
            const step = format === "int8" ? largest / 126 : Math.max(largest / 6.5, 8 * 2 ** -24);
            for (const [i, v] of part.entries()) {
              const error = Math.abs(kept[at + i] - v);
              assert.ok(error <= 2.6 * step, `${format} ${v} became ${kept[at + i]}`);
            }
          }
        }
      }),
      { numRuns: 60 },
    );
  });

  it("are zeros where all are zeros", () => {
    for (const format of EXPERT_FORMATS) {
      const zeros = unpackMatrix(format, pack(format, new Float32Array(80), 40), 40);
      assert.ok(
        zeros.every((value) => value === 0),
        format,
      );
    }
  });

  it("that are MXFP4 already keep every bit in mxfp4, whichever codes a block has", () => {
    const codes = [0, 0.5, 1, 1.5, 2, 3, 4, 6];
    const blocks = fc.array(
      fc.record({
        // From where the smallest magnitude is no subnormal of f32 to where the largest is finite.
        exponent: fc.integer({ min: -122, max: 124 }),
        codes: fc.array(fc.integer({ min: 0, max: 15 }), { minLength: 32, maxLength: 32 }),
      }),
      { minLength: 1, maxLength: 4 },
    );
    fc.assert(
      fc.property(blocks, (blocks) => {
        const list = blocks.flatMap(({ exponent, codes: chosen }) =>
          chosen.map((code) => (code < 8 ? 1 : -1) * codes[code % 8] * 2 ** exponent),
        );
        // The last block is partial.
        const values = Float32Array.from(list.slice(0, -8));
        const kept = unpackMatrix("mxfp4", pack("mxfp4", values, values.length), values.length);
        assert.deepEqual(new Uint32Array(kept.buffer), new Uint32Array(values.buffer));
      }),
    );
  });
});

test("rows packed a few at a time are those packed at once", () => {
  const values = bellValues(10 * 40, 5);
  for (const format of EXPERT_FORMATS) {
    const parts = emptyMatrix(format, 10, 40);
    packRows(format, values.slice(0, 3 * 40), 40, parts, 0);
    packRows(format, values.slice(3 * 40), 40, parts, 3);
    assert.deepEqual(parts, pack(format, values, 40), format);
  }
});

test("weights that a format can not take are refused by name, value and limit", () => {
  const matrix = (value: number, columns = 8) => ({
    shape: [2, columns],
    dtype: "F32" as const,
    bytes: bytesOf(new Float32Array(2 * columns).fill(value, 9, 10)),
  });
  const refused = (format: ExpertFormat, value: number, text: RegExp) =>
    assert.throws(
      () => packMatrix("layer 1 up", matrix(value), format),
      (error) => error instanceof WeightOverflowError && text.test(error.message),
    );
  refused("f16", 7e4, /layer 1 up: holds 70000, f16 takes at most 65504/);
  refused("int4-g64", 5e5, /layer 1 up: holds 500000, int4-g64 takes at most 458528/);
  refused("int8", Number.NaN, /holds NaN, expected finite/);
  refused("mxfp4", Number.POSITIVE_INFINITY, /holds Infinity, expected finite/);
  assert.throws(() => packMatrix("down", matrix(1, 12), "int8"), /down: 12 columns.*multiple of 8/);
});
