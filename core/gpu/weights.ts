/** Weights on their way to the device, and how kernels read them. */

import type { WeightsDtype } from "../expert-device.ts";
import { type HostTensor, numElements } from "../tensor.ts";
import { weightBytes, weightsInParts } from "../weights.ts";
import { allocate, type Gpu, STORAGE, write } from "./device.ts";

/**
 * Uploads matrices one below the other: [sum of rows, columns], in parts.
 * Throws as `convertWeights` and `allocate`.
 */
function uploadWeights(
  gpu: Gpu,
  name: string,
  tensors: readonly HostTensor[],
  dtype: WeightsDtype,
): GPUBuffer {
  const perWeight = weightBytes(dtype);
  const length = tensors.reduce((sum, { shape }) => sum + numElements(shape), 0);
  const buffer = allocate(gpu, name, length * perWeight, STORAGE);
  try {
    for (const { values, at } of weightsInParts(name, tensors, dtype)) {
      write(gpu, buffer, at * perWeight, values);
    }
  } catch (error) {
    buffer.destroy();
    throw error;
  }
  return buffer;
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
