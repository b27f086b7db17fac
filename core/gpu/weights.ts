/** Weights on their way from a checkpoint to the device: conversion to the cluster's dtype, and how kernels read them. */

import type { WeightsDtype } from "../expert-device.ts";
import { F16_MAX, f32ToF16, type HostTensor, maxMagnitude, toF32 } from "../tensor.ts";
import { type Gpu, upload } from "./device.ts";

/** A weight is too large for the dtype that the cluster keeps weights in. */
export class WeightOverflowError extends Error {
  override readonly name = "WeightOverflowError";
}

/** Bytes that one weight takes on the device. */
export function weightBytes(dtype: WeightsDtype): number {
  return dtype === "f16" ? 2 : 4;
}

/**
 * The tensor's values in the cluster's dtype.
 * Throws WeightOverflowError where a value is not finite or, for f16, beyond ±65504.
 */
export function convertWeights(
  name: string,
  tensor: HostTensor,
  dtype: WeightsDtype,
): Float16Array | Float32Array {
  const values = toF32(tensor);
  const largest = maxMagnitude(values);
  if (!Number.isFinite(largest)) {
    throw new WeightOverflowError(`${name}: holds ${largest}, expected finite values`);
  }
  if (dtype === "f32") return values;
  if (largest > F16_MAX) {
    throw new WeightOverflowError(
      `${name}: holds ${largest}, f16 takes at most ${F16_MAX}; start with --weights f32`,
    );
  }
  return f32ToF16(values);
}

/** Uploads matrices one below the other: [sum of rows, columns]. Throws as `convertWeights` and `allocate`. */
export function uploadWeights(
  gpu: Gpu,
  name: string,
  tensors: readonly HostTensor[],
  dtype: WeightsDtype,
): GPUBuffer {
  const parts = tensors.map((tensor) => convertWeights(name, tensor, dtype));
  const length = parts.reduce((sum, part) => sum + part.length, 0);
  const joined = dtype === "f16" ? new Float16Array(length) : new Float32Array(length);
  let offset = 0;
  for (const part of parts) {
    joined.set(part, offset);
    offset += part.length;
  }
  return upload(gpu, name, joined);
}

/** Uploads vectors one after the other in f32: norms, biases. Throws as `convertWeights` and `allocate`. */
export function uploadVectors(gpu: Gpu, name: string, tensors: readonly HostTensor[]): GPUBuffer {
  return uploadWeights(gpu, name, tensors, "f32");
}

/** Element type of a weights binding: one load brings 8 f16 or 4 f32. */
export const WEIGHT_ELEMENT = { f16: "vec4<u32>", f32: "vec4<f32>" } as const;

/**
 * WGSL of `weights8(i)`: the 8 consecutive weights i*8 … i*8+7 of the binding `weights` as two vec4<f32>.
 * f16 weights need no shader-f16: they are read as pairs in u32 and unpacked.
 */
export const WEIGHTS_8 = {
  f16: /* wgsl */ `
struct Eight { a: vec4<f32>, b: vec4<f32> }
fn weights8(i: u32) -> Eight {
  let p = weights[i];
  return Eight(
    vec4<f32>(unpack2x16float(p.x), unpack2x16float(p.y)),
    vec4<f32>(unpack2x16float(p.z), unpack2x16float(p.w)));
}`,
  f32: /* wgsl */ `
struct Eight { a: vec4<f32>, b: vec4<f32> }
fn weights8(i: u32) -> Eight {
  return Eight(weights[i * 2u], weights[i * 2u + 1u]);
}`,
} as const;
