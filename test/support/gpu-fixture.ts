/** Buffers in and out of kernels under test. */

import assert from "node:assert/strict";

import type { WeightsDtype } from "../../core/expert-device.ts";
import { allocate, type Gpu, READ_BACK, STORAGE, UNIFORM, upload } from "../../core/gpu/device.ts";
import { type Binding, compileKernel, type Kernel } from "../../core/gpu/kernel.ts";
import { COUNTS_BYTES, countsData, type StepSizes } from "../../core/gpu/kernels/counts.ts";
import { f32ToF16 } from "../../core/tensor.ts";
import { testValues } from "../../bench/rig/expert-reference.ts";

/** Experts that are small, for tests of what happens around them. */
export const SMALL_EXPERTS = {
  hiddenSize: 64,
  expertIntermediateSize: 32,
  activation: { kind: "silu" },
  expertBias: false,
} as const;

/** Deterministic values in [-scale, scale). */
export function randomValues(length: number, seed: number, scale = 1): Float32Array {
  return testValues(length, seed).map((value) => value * scale);
}

/** A buffer's first `bytes` bytes on the host. */
export async function readBuffer(gpu: Gpu, buffer: GPUBuffer, bytes: number): Promise<ArrayBuffer> {
  const staging = allocate(gpu, "test read-back", bytes, READ_BACK);
  const encoder = gpu.device.createCommandEncoder();
  encoder.copyBufferToBuffer(buffer, 0, staging, 0, bytes);
  gpu.device.queue.submit([encoder.finish()]);
  await staging.mapAsync(1);
  const copy = staging.getMappedRange(0, bytes).slice(0);
  staging.destroy();
  return copy;
}

/** Runs a kernel once over the given inputs; results are read from the buffers by the caller. */
export async function runKernel(
  gpu: Gpu,
  kernel: Kernel<StepSizes>,
  sizes: StepSizes,
  bindings: readonly (Binding | ArrayBufferView)[],
): Promise<GPUBuffer[]> {
  const counts = allocate(gpu, "counts", COUNTS_BYTES, UNIFORM);
  gpu.device.queue.writeBuffer(counts, 0, countsData(sizes));
  const buffers = bindings.map((binding, i) =>
    ArrayBuffer.isView(binding) ? upload(gpu, `input ${i}`, binding) : binding,
  );
  const bound = (await compileKernel(gpu, kernel)).bind(counts, ...buffers);
  const encoder = gpu.device.createCommandEncoder();
  const pass = encoder.beginComputePass();
  bound.encode(pass, sizes);
  pass.end();
  gpu.device.queue.submit([encoder.finish()]);
  return buffers as GPUBuffer[];
}

/** Weights as the device gets them, and the values that those stand for. */
export function weightsOf(values: Float32Array, dtype: WeightsDtype) {
  if (dtype === "f32") return { device: values, exact: values };
  const halves = f32ToF16(values);
  return { device: halves, exact: Float32Array.from(halves) };
}

/** Every value within tolerance · max(1, |expected|). */
export function assertClose(actual: Float32Array, expected: Float32Array, tolerance: number): void {
  assert.equal(actual.length, expected.length);
  for (let i = 0; i < expected.length; i++) {
    const allowed = tolerance * Math.max(1, Math.abs(expected[i]));
    if (!(Math.abs(actual[i] - expected[i]) <= allowed)) {
      assert.fail(`[${i}]: ${actual[i]}, expected ${expected[i]} ± ${allowed}`);
    }
  }
}

/** A zeroed f32 buffer. */
export function zeros(gpu: Gpu, length: number): GPUBuffer {
  return allocate(gpu, "output", length * 4, STORAGE);
}

/** The first values of a buffer. */
export async function readF32(gpu: Gpu, buffer: GPUBuffer, length: number): Promise<Float32Array> {
  return new Float32Array(await readBuffer(gpu, buffer, length * 4));
}
