import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";

import type { StoredExpert } from "../../../core/expert-device.ts";
import { EXPERT_FORMATS, type PackedMatrix } from "../../../core/expert-format.ts";
import { openCheckpoint } from "../../../core/model/checkpoint/checkpoint.ts";
import { readExpert } from "../../../core/model/checkpoint/weights.ts";
import { plainFloats } from "../../../core/packing/mxfp4-matrix.ts";
import { PackPool } from "../../../core/packing/pack-pool.ts";
import { unpackMatrix } from "../../../core/packing/quantize.ts";
import { bytesOf, type Mxfp4Matrix, toF32 } from "../../../core/tensor.ts";
import { packExpert, packMatrix, WeightOverflowError } from "../../../core/weights.ts";
import { testValues } from "../../../bench/rig/expert-reference.ts";
import { decodeSafetensors } from "../model/checkpoint/safetensors-writer.ts";

const GPT_OSS = join(import.meta.dirname, "../../goldens/gpt_oss");

/** Every code under scales of any size, in views at odd offsets. */
function randomMatrix(rows: number, columns: number, largestScale: number): Mxfp4Matrix {
  const bytes = (count: number, below: number, seed: number) =>
    Uint8Array.from(testValues(count + 1, seed), (value) => ((value + 1) / 2) * below).subarray(1);
  return {
    shape: [rows, columns],
    dtype: "MXFP4",
    bytes: bytes((rows * columns) / 2, 256, columns),
    scales: bytes((rows * columns) / 32, largestScale + 1, columns + 1),
  };
}

/** A row of the scales that a device has, without what pads it. */
function scaleRow({ scales }: PackedMatrix, row: number, rows: number, groups: number): Uint8Array {
  const apart = (4 * scales.length) / rows;
  const all = bytesOf(scales).subarray(row * apart, (row + 1) * apart);
  assert.ok(all.subarray(groups).every((padding) => padding === 0));
  return all.subarray(0, groups);
}

test("packed as MXFP4 it keeps every code and scale, each row's scales padded", () => {
  for (const columns of [32, 96, 128, 160, 2880]) {
    const rows = 7;
    const matrix = randomMatrix(rows, columns, 252);
    const packed = packMatrix("m", matrix, "mxfp4");
    assert.deepEqual(bytesOf(packed.weights), matrix.bytes.slice(), `${columns} columns`);
    const groups = columns / 32;
    for (let row = 0; row < rows; row++) {
      const own = matrix.scales.slice(row * groups, (row + 1) * groups);
      assert.deepEqual(scaleRow(packed, row, rows, groups).slice(), own, `${columns} columns`);
    }
    assert.deepEqual(unpackMatrix("mxfp4", packed, columns), toF32(plainFloats(matrix)));
  }
});

test("packed in any other format it is what its values in BF16 become", () => {
  // More rows than are packed at a time.
  const matrix = randomMatrix(700, 96, 127);
  for (const format of EXPERT_FORMATS) {
    if (format === "mxfp4") continue;
    const expected = packMatrix("m", plainFloats(matrix), format);
    assert.deepEqual(packMatrix("m", matrix, format), expected, format);
  }
});

test("values that are not finite are refused in every format; the largest finite ones are kept", () => {
  const one = (scale: number, code: number): Mxfp4Matrix => {
    const bytes = new Uint8Array(32);
    bytes[20] = code << 4;
    return { shape: [2, 32], dtype: "MXFP4", bytes, scales: Uint8Array.of(127, scale) };
  };
  for (const format of ["mxfp4", "f32", "int8"] as const) {
    // 2^128 is the first power of two beyond f32.
    for (const [scale, code, shown] of [
      [255, 0, "NaN"],
      [254, 4, "Infinity"],
      [253, 7, "Infinity"],
    ] as const) {
      assert.throws(
        () => packMatrix("m", one(scale, code), format),
        (error) => {
          assert.ok(error instanceof WeightOverflowError);
          assert.equal(error.message, `m: holds ${shown}, expected finite values`);
          return true;
        },
      );
    }
    for (const [scale, code] of [
      [254, 3],
      [253, 5],
      [252, 7],
    ]) {
      packMatrix("m", one(scale, code), format);
    }
  }
});

test("an expert of a gpt-oss checkpoint comes onto a device with the file's own bytes", async (t) => {
  const tensors = await decodeSafetensors(join(GPT_OSS, "model.safetensors"));
  const checkpoint = await openCheckpoint(GPT_OSS);
  const pool = new PackPool(1);
  t.after(async () => {
    await pool.close();
    await checkpoint.close();
  });
  const { config } = checkpoint;
  const [layer, expert] = [2, 5];
  const read = () => readExpert(checkpoint, layer, expert);
  const packed = packExpert("e", await read(), config, "mxfp4");
  const sizes = { name: "e", sizes: config, format: "mxfp4" } as const;
  assert.deepEqual(await pool.pack({ ...sizes, weights: await read() }), packed);
  /** Rows of a tensor [numExperts, allRows, …] of one byte each element. */
  const rowsOf = (name: string, first: number, step: number) => {
    const { data, shape } = tensors.get(`model.layers.${layer}.mlp.experts.${name}`)!;
    const [, allRows, ...row] = shape;
    const rowBytes = row.reduce((a, b) => a * b, 1);
    const parts = Array.from({ length: allRows / step }, (_, i) => {
      const at = (expert * allRows + first + i * step) * rowBytes;
      return data.subarray(at, at + rowBytes);
    });
    return parts;
  };
  for (const [part, name, first, step] of [
    ["gate", "gate_up_proj", 0, 2],
    ["up", "gate_up_proj", 1, 2],
    ["down", "down_proj", 0, 1],
  ] as const) {
    const blocks = rowsOf(`${name}_blocks`, first, step);
    const scales = rowsOf(`${name}_scales`, first, step);
    assert.deepEqual(Buffer.from(bytesOf(packed[part].weights)), Buffer.concat(blocks), part);
    for (const [row, expected] of scales.entries()) {
      const actual = scaleRow(packed[part], row, scales.length, expected.length);
      assert.deepEqual(Buffer.from(actual), Buffer.from(expected), part);
    }
  }
});

test("threads pack MXFP4 whose codes and scales stand in one buffer", async (t) => {
  const pool = new PackPool(1);
  t.after(() => pool.close());
  const sizes = {
    hiddenSize: 96,
    expertIntermediateSize: 64,
    activation: { kind: "silu" },
    expertBias: false,
  } as const;
  const stored = (rows: number, columns: number): Mxfp4Matrix => {
    const matrix = randomMatrix(rows, columns, 200);
    const all = new Uint8Array(matrix.bytes.length + matrix.scales.length);
    all.set(matrix.bytes);
    all.set(matrix.scales, matrix.bytes.length);
    const [bytes, scales] = [
      all.subarray(0, matrix.bytes.length),
      all.subarray(matrix.bytes.length),
    ];
    return { ...matrix, bytes, scales };
  };
  const expert = (): StoredExpert => ({
    gate: stored(64, 96),
    up: stored(64, 96),
    down: stored(96, 64),
  });
  for (const format of ["mxfp4", "f32"] as const) {
    const packed = await pool.pack({ name: "e", weights: expert(), sizes, format });
    assert.deepEqual(packed, packExpert("e", expert(), sizes, format), format);
  }
});
