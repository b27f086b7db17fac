/** The dtype in which a cluster keeps weights, and the conversion of a checkpoint's tensors to it. */

import type { ExpertSizes, ExpertWeights, WeightsDtype } from "./expert-device.ts";
import { F16_MAX, f32ToF16, type HostTensor, maxMagnitude, toF32 } from "./tensor.ts";

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

/** Tensors in the cluster's dtype one after the other, in an array of their own. Throws as `convertWeights`. */
export function stackWeights(
  name: string,
  tensors: readonly HostTensor[],
  dtype: WeightsDtype,
): Float16Array | Float32Array {
  const parts = tensors.map((tensor) => convertWeights(name, tensor, dtype));
  const length = parts.reduce((sum, part) => sum + part.length, 0);
  const stacked = dtype === "f16" ? new Float16Array(length) : new Float32Array(length);
  let offset = 0;
  for (const part of parts) {
    stacked.set(part, offset);
    offset += part.length;
  }
  return stacked;
}

/** Bytes that one expert's weights take in a dtype. */
export function expertBytes(sizes: ExpertSizes, dtype: WeightsDtype): number {
  return 3 * sizes.hiddenSize * sizes.expertIntermediateSize * weightBytes(dtype);
}

/**
 * An expert's projections in the cluster's dtype.
 * Throws RangeError where a shape is not that of the sizes, else as `convertWeights`; `name` is the expert's.
 */
export function convertExpert(
  name: string,
  weights: ExpertWeights,
  { hiddenSize, expertIntermediateSize }: ExpertSizes,
  dtype: WeightsDtype,
): Readonly<Record<keyof ExpertWeights, Float16Array | Float32Array>> {
  const convert = (part: keyof ExpertWeights, rows: number, columns: number) => {
    const { shape } = weights[part];
    if (shape.length !== 2 || shape[0] !== rows || shape[1] !== columns) {
      const got = `shape [${shape.join(", ")}], expected [${rows}, ${columns}]`;
      throw new RangeError(`${name} ${part}: ${got}`);
    }
    return convertWeights(`${name} ${part}`, weights[part], dtype);
  };
  return {
    gate: convert("gate", expertIntermediateSize, hiddenSize),
    up: convert("up", expertIntermediateSize, hiddenSize),
    down: convert("down", hiddenSize, expertIntermediateSize),
  };
}
