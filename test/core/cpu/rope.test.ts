import assert from "node:assert/strict";
import { test } from "node:test";

import { ropeFrequencies, ropeTable, rotate } from "../../../core/cpu/rope.ts";
import { assertClose } from "../../../bench/rig/expert-reference.ts";

// Frequencies by test/goldens/variants/reference.py.
const CASES = [
  {
    what: "gpt-oss, whose ramp's ends are no whole columns",
    dim: 16,
    theta: 150000,
    yarn: { factor: 32, originalPositions: 32, betaFast: 32, betaSlow: 1, truncate: false },
    expected: [
      1, 0.02556476, 0.0015879148, 0.00035794459, 8.0687153e-5, 1.8188337e-5, 4.0999785e-6,
      9.2420895e-7,
    ],
  },
  {
    what: "DeepSeek-V2, whose ramp's ends are rounded",
    dim: 16,
    theta: 10000,
    yarn: { factor: 40, originalPositions: 4096, betaFast: 32, betaSlow: 1, truncate: true },
    expected: [1, 0.31622777, 0.1, 0.023914725, 0.005125, 0.00084986212, 2.5e-5, 7.9056942e-6],
  },
] as const;

for (const { what, expected, ...rope } of CASES) {
  test(`YaRN keeps high frequencies and divides low ones as in ${what}`, () => {
    const frequencies = ropeFrequencies({ ...rope, interleaved: false, magnitude: 1 });
    for (const [i, frequency] of expected.entries()) {
      assert.ok(Math.abs(frequencies[i] / frequency - 1) < 2e-6, `pair ${i}: ${frequencies[i]}`);
    }
  });
}

test("the table's cosines and sines carry the magnitude", () => {
  const rope = { dim: 4, theta: 100, interleaved: false, magnitude: 1.5 };
  const expected = [3, 0.3].flatMap((angle) => [1.5 * Math.cos(angle), 1.5 * Math.sin(angle)]);
  assertClose(ropeTable(4, rope).subarray(3 * 4), expected, 1e-6);
});

test("interleaved and half-split pairs are the same turn of columns in another order", () => {
  const rope = { dim: 4, theta: 100, interleaved: false, magnitude: 1 };
  const positions = Uint32Array.from([2, 7]);
  const table = ropeTable(8, rope);
  const halves = Float32Array.from([1, 2, 3, 4, 5, 6, 7, 8]);
  const pairs = Float32Array.from([1, 3, 2, 4, 5, 7, 6, 8]);
  rotate(halves, positions, table, rope);
  rotate(pairs, positions, table, { ...rope, interleaved: true });
  assert.deepEqual(
    [0, 2, 1, 3, 4, 6, 5, 7].map((i) => pairs[i]),
    [...halves],
  );
});

test("only the last columns of a wider head are turned", () => {
  const rope = { dim: 2, theta: 100, interleaved: true, magnitude: 1 };
  const x = Float32Array.from([1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
  rotate(x, Uint32Array.from([1]), ropeTable(2, rope), rope, 5);
  const [cos, sin] = [Math.cos(1), Math.sin(1)];
  const turned = (a: number, b: number) => [a * cos - b * sin, b * cos + a * sin];
  assertClose(x, [1, 2, 3, ...turned(4, 5), 6, 7, 8, ...turned(9, 10)], 1e-6);
});
