/** Experts to test with, and their sums in double precision. */

import assert from "node:assert/strict";

import type { ExpertSizes, ExpertWeights } from "../../core/expert-device.ts";
import { NO_SLOT } from "../../core/expert-device.ts";
import type { HostTensor } from "../../core/tensor.ts";
import { bytesOf, f32FromBytes, f32ToF16 } from "../../core/tensor.ts";

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
  return {
    gate: tensor(expertIntermediateSize, hiddenSize, 0),
    up: tensor(expertIntermediateSize, hiddenSize, 1),
    down: tensor(hiddenSize, expertIntermediateSize, 2),
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
  const product = (tensor: HostTensor, vector: ArrayLike<number>, out: number) => {
    const values = f32FromBytes(tensor.bytes);
    const columns = vector.length;
    return Float64Array.from({ length: out }, (_, row) => {
      let sum = 0;
      for (let i = 0; i < columns; i++) sum += values[row * columns + i] * vector[i];
      return sum;
    });
  };
  for (let row = 0; row < numRows; row++) {
    const input = rows.subarray(row * hiddenSize, (row + 1) * hiddenSize);
    for (let k = 0; k < topK; k++) {
      const slot = slots[row * topK + k];
      if (slot === NO_SLOT) continue;
      const gate = product(experts[slot].gate, input, expertIntermediateSize);
      const up = product(experts[slot].up, input, expertIntermediateSize);
      const inner = gate.map((value, i) => (value / (1 + Math.exp(-value))) * up[i]);
      const output = product(experts[slot].down, inner, hiddenSize);
      for (let h = 0; h < hiddenSize; h++) {
        sums[row * hiddenSize + h] += weights[row * topK + k] * output[h];
      }
    }
  }
  return sums;
}

/** The expert as a device that keeps f16 sees it. */
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
export function mapTensors(
  expert: ExpertWeights,
  map: (tensor: HostTensor) => HostTensor,
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
