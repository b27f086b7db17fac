/** The dtype in which a cluster keeps weights, and the conversion of a checkpoint's tensors to it. */

import type { WeightsDtype } from "./expert-device.ts";
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
