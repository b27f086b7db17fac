/** A checkpoint's tensors as the f32 values that plain loops take. */

import type { WeightsDtype } from "../../../core/expert-device.ts";
import type { Projection } from "../../../core/model/checkpoint/weights.ts";
import type { HostTensor } from "../../../core/tensor.ts";
import { stackWeights } from "../../../core/weights.ts";

/** A projection's weight [out, in] and bias [out]. */
export interface CpuProjection {
  readonly weight: Float32Array;
  readonly bias?: Float32Array;
}

/** Turns the tensors of one part of a model into f32 values. Throws as `convertWeights`. */
export interface CpuLoader {
  /** Matrices one above the other, rounded to the cluster's dtype. */
  matrix(name: string, ...tensors: readonly HostTensor[]): Float32Array;
  /** Values that stay in f32 whatever the cluster's dtype. */
  vector(name: string, tensor: HostTensor): Float32Array;
  /** A matrix and its bias. */
  projection(name: string, of: Projection): CpuProjection;
}

/** A loader for the part of a model that `at` names in errors. */
export function cpuLoader(at: string, dtype: WeightsDtype): CpuLoader {
  const load = (name: string, tensors: readonly HostTensor[], as: WeightsDtype) => {
    const stacked = stackWeights(`${at}${name}`, tensors, as);
    return stacked instanceof Float32Array ? stacked : new Float32Array(stacked);
  };
  const matrix = (name: string, ...tensors: readonly HostTensor[]) => load(name, tensors, dtype);
  const vector = (name: string, tensor: HostTensor) => load(name, [tensor], "f32");
  return {
    matrix,
    vector,
    projection: (name, { weight, bias }) => ({
      weight: matrix(name, weight),
      bias: bias && vector(`${name} bias`, bias),
    }),
  };
}
