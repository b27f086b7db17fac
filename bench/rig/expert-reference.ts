/** Experts to test with, and their sums in double precision. */

import assert from "node:assert/strict";

import type { ExpertSizes, ExpertWeights } from "../../core/expert-device.ts";
import { NO_SLOT } from "../../core/expert-device.ts";
import type { ExpertFormat } from "../../core/expert-format.ts";
import { unpackMatrix } from "../../core/packing/quantize.ts";
import type { HostTensor, StoredMatrix } from "../../core/tensor.ts";
import { bytesOf, f32FromBytes, f32ToF16 } from "../../core/tensor.ts";
import { packExpert } from "../../core/weights.ts";

/** Values between -1 and 1 that look random and are the same every time. */
export function testValues(count: number, seed: number): Float32Array {
  let state = (seed * 2654435761 + 12345) >>> 0;
  return Float32Array.from({ length: count }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 31 - 1;
  });
}

/** An expert's weights with values of about 1/√width, in F32. */
export function testExpert(sizes: ExpertSizes, seed: number): ExpertWeights {
  const { hiddenSize, expertIntermediateSize } = sizes;
  const tensor = (rows: number, columns: number, salt: number): HostTensor => ({
    shape: [rows, columns],
    dtype: "F32",
    bytes: bytesOf(
      testValues(rows * columns, seed * 3 + salt).map((value) => (2 * value) / Math.sqrt(columns)),
    ),
  });
  const vector = (length: number, salt: number): HostTensor => ({
    shape: [length],
    dtype: "F32",
    bytes: bytesOf(testValues(length, seed * 7 + salt)),
  });
  return {
    gate: tensor(expertIntermediateSize, hiddenSize, 0),
    up: tensor(expertIntermediateSize, hiddenSize, 1),
    down: tensor(hiddenSize, expertIntermediateSize, 2),
    ...(sizes.expertBias && {
      gateBias: vector(expertIntermediateSize, 3),
      upBias: vector(expertIntermediateSize, 4),
      downBias: vector(hiddenSize, 5),
    }),
  };
}

/** Rows, and their routing over slots: slots repeat over rows, and about one in five is on another device. */
export function testRun(hiddenSize: number, numRows: number, topK: number, numSlots: number) {
  return {
    rows: testValues(numRows * hiddenSize, 11),
    slots: Uint32Array.from({ length: numRows * topK }, (_, i) =>
      i % 5 === 3 ? NO_SLOT : (i * 5 + Math.floor(i / topK)) % numSlots,
    ),
    weights: testValues(numRows * topK, 12).map(Math.abs),
  };
}

/** Weighted sums in double precision, straight from the definition. */
export function expectedSums(
  sizes: ExpertSizes,
  experts: readonly ExpertWeights[],
  rows: Float32Array,
  slots: Uint32Array,
  weights: Float32Array,
): Float64Array {
  const { hiddenSize, expertIntermediateSize } = sizes;
  const numRows = rows.length / hiddenSize;
  const topK = slots.length / numRows;
  const sums = new Float64Array(rows.length);
  const product = (
    tensor: HostTensor,
    vector: ArrayLike<number>,
    out: number,
    bias: HostTensor | undefined,
  ) => {
    const biases = bias === undefined ? undefined : f32FromBytes(bias.bytes);
    const values = f32FromBytes(tensor.bytes);
    const columns = vector.length;
    return Float64Array.from({ length: out }, (_, row) => {
      let sum = biases === undefined ? 0 : biases[row];
      for (let i = 0; i < columns; i++) sum += values[row * columns + i] * vector[i];
      return sum;
    });
  };
  for (let row = 0; row < numRows; row++) {
    const input = rows.subarray(row * hiddenSize, (row + 1) * hiddenSize);
    for (let k = 0; k < topK; k++) {
      const slot = slots[row * topK + k];
      if (slot === NO_SLOT) continue;
      const expert = experts[slot];
      const gate = product(expert.gate, input, expertIntermediateSize, expert.gateBias);
      const up = product(expert.up, input, expertIntermediateSize, expert.upBias);
      const inner = gate.map((value, i) => activated(sizes, value, up[i]));
      const output = product(expert.down, inner, hiddenSize, expert.downBias);
      for (let h = 0; h < hiddenSize; h++) {
        sums[row * hiddenSize + h] += weights[row * topK + k] * output[h];
      }
    }
  }
  return sums;
}

/** What stands between the projections, as models' papers and code define it. */
function activated({ activation }: ExpertSizes, gate: number, up: number): number {
  if (activation.kind !== "clampedSwiglu") return (gate / (1 + Math.exp(-gate))) * up;
  const { alpha, limit } = activation;
  const g = gate > limit ? limit : gate;
  const u = up > limit ? limit : up < -limit ? -limit : up;
  return ((u + 1) * g) / (1 + Math.exp(-alpha * g));
}

/** The expert as a device that keeps it in a format sees it. */
export function asFormatKeeps(
  expert: ExpertWeights,
  sizes: ExpertSizes,
  format: ExpertFormat,
): ExpertWeights {
  const packed = packExpert("an expert", expert, sizes, format);
  const kept = (part: "gate" | "up" | "down"): HostTensor => ({
    ...expert[part],
    bytes: bytesOf(unpackMatrix(format, packed[part], expert[part].shape[1])),
  });
  return { ...expert, gate: kept("gate"), up: kept("up"), down: kept("down") };
}

/** The expert with every value rounded to f16. */
export function roundedToF16(expert: ExpertWeights): ExpertWeights {
  const round = (tensor: HostTensor): HostTensor => ({
    ...tensor,
    bytes: bytesOf(Float32Array.from(f32ToF16(f32FromBytes(tensor.bytes)))),
  });
  return { gate: round(expert.gate), up: round(expert.up), down: round(expert.down) };
}

/** Asserts that values are within `tolerance` of the expected ones, relative to the largest of them. */
export function assertClose(
  actual: Float32Array,
  expected: ArrayLike<number>,
  tolerance: number,
): void {
  assert.equal(actual.length, expected.length);
  let scale = 1e-3;
  for (let i = 0; i < expected.length; i++) scale = Math.max(scale, Math.abs(expected[i]));
  for (let i = 0; i < expected.length; i++) {
    const difference = Math.abs(actual[i] - expected[i]);
    assert.ok(
      difference <= tolerance * scale,
      `value ${i}: ${actual[i]}, expected ${expected[i]} within ${tolerance * scale}`,
    );
  }
}

/** The expert with each of its three tensors replaced. */
export function mapTensors<Matrix extends StoredMatrix>(
  expert: ExpertWeights<Matrix>,
  map: (tensor: Matrix) => HostTensor,
): ExpertWeights {
  return { gate: map(expert.gate), up: map(expert.up), down: map(expert.down) };
}

/** The expert with every value cut to bf16. */
export function roundedToBf16(expert: ExpertWeights): ExpertWeights {
  return mapTensors(expert, (tensor) => {
    const bits = new Uint32Array(f32FromBytes(tensor.bytes).slice().buffer);
    return { ...tensor, bytes: bytesOf(bits.map((value) => value & 0xffff0000)) };
  });
}

/** The tensors in a 2-byte dtype that holds their values exactly, at an odd offset. */
export function toDtype(expert: ExpertWeights, dtype: "F16" | "BF16"): ExpertWeights {
  return mapTensors(expert, (tensor) => {
    const values = f32FromBytes(tensor.bytes);
    const halves =
      dtype === "F16"
        ? bytesOf(f32ToF16(values))
        : bytesOf(
            Uint16Array.from(new Uint32Array(values.slice().buffer), (value) => value >>> 16),
          );
    const bytes = new Uint8Array(halves.length + 1);
    bytes.set(halves, 1);
    return { shape: tensor.shape, dtype, bytes: bytes.subarray(1) };
  });
}
