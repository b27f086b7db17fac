/** A checkpoint's tensors in what a device keeps: the cluster's dtype, and the formats of experts. */

import { isDeepStrictEqual } from "node:util";

import type { ExpertSizes, StoredExpert, WeightsDtype } from "./expert-device.ts";
import {
  emptyMatrix,
  type ExpertFormat,
  matrixBytes,
  type PackedExpert,
  type PackedMatrix,
} from "./expert-format.ts";
import { decodeRows, mayOverflow, packMxfp4, plainFloats } from "./packing/mxfp4-matrix.ts";
import { packStagedInt4, stageRows } from "./packing/wasm.ts";
import { packRows } from "./packing/quantize.ts";
import {
  bytesPerElement,
  F16_MAX,
  f32ToF16,
  type HostTensor,
  maxMagnitude,
  numElements,
  type StoredMatrix,
  toF32,
} from "./tensor.ts";

/** Values that are converted at a time, so that the host never holds a large tensor in f32. */
const VALUES_AT_ONCE = 1 << 18;

/** Values that are packed at a time: they stay in the processor's caches. */
const PACKED_AT_ONCE = 1 << 15;

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
function convertWeights(
  name: string,
  tensor: HostTensor,
  dtype: WeightsDtype,
): Float16Array | Float32Array {
  const values = toF32(tensor);
  checkMagnitude(name, maxMagnitude(values), dtype === "f16" ? F16_MAX : Number.MAX_VALUE, dtype);
  if (dtype === "f32") return values;
  return f32ToF16(values);
}

/** Throws WeightOverflowError where the largest magnitude is not finite or beyond the limit. */
function checkMagnitude(name: string, largest: number, limit: number, format: string): void {
  if (!Number.isFinite(largest)) {
    throw new WeightOverflowError(`${name}: holds ${largest}, expected finite values`);
  }
  if (largest > limit) {
    const remedy = format === "f16" ? "; start with --weights f32" : "";
    throw new WeightOverflowError(
      `${name}: holds ${largest}, ${format} takes at most ${limit}${remedy}`,
    );
  }
}

/** Tensors in the cluster's dtype one after the other, in an array of their own. Throws as `convertWeights`. */
export function stackWeights(
  name: string,
  tensors: readonly HostTensor[],
  dtype: WeightsDtype,
): Float16Array | Float32Array {
  const length = tensors.reduce((sum, { shape }) => sum + numElements(shape), 0);
  const stacked = dtype === "f16" ? new Float16Array(length) : new Float32Array(length);
  for (const { values, at } of weightsInParts(name, tensors, dtype)) stacked.set(values, at);
  return stacked;
}

/** Consecutive values of weights on their way to a device. */
export interface WeightsPart {
  readonly values: Float16Array | Float32Array;
  /** Index of the first value. */
  readonly at: number;
}

/**
 * Tensors in the cluster's dtype one after the other, a part at a time: no whole tensor is held twice.
 * Throws as `convertWeights`.
 */
export function* weightsInParts(
  name: string,
  tensors: readonly HostTensor[],
  dtype: WeightsDtype,
): Generator<WeightsPart, void> {
  let at = 0;
  for (const tensor of tensors) {
    const size = bytesPerElement(tensor.dtype);
    const length = numElements(tensor.shape);
    for (let from = 0; from < length; from += VALUES_AT_ONCE) {
      const to = Math.min(length, from + VALUES_AT_ONCE);
      const bytes = tensor.bytes.subarray(from * size, to * size);
      const part = { shape: [to - from], dtype: tensor.dtype, bytes };
      yield { values: convertWeights(name, part, dtype), at };
      at += to - from;
    }
  }
}

/** A projection of an expert. */
type Projection = "gate" | "up" | "down";

/** Makes the parts of an expert. */
export interface ExpertParts {
  readonly matrix: (rows: number, columns: number, of: Projection) => PackedMatrix;
  readonly bias: (length: number, of: Projection) => Float32Array<ArrayBuffer>;
}

/** An expert of these sizes from its parts, made in this order: gate, up, down, then their biases, where there are any. */
export function expertFrom(
  { hiddenSize, expertIntermediateSize, expertBias }: ExpertSizes,
  format: ExpertFormat,
  { matrix, bias }: ExpertParts,
): PackedExpert {
  return {
    format,
    gate: matrix(expertIntermediateSize, hiddenSize, "gate"),
    up: matrix(expertIntermediateSize, hiddenSize, "up"),
    down: matrix(hiddenSize, expertIntermediateSize, "down"),
    biases: expertBias
      ? {
          gate: bias(expertIntermediateSize, "gate"),
          up: bias(expertIntermediateSize, "up"),
          down: bias(hiddenSize, "down"),
        }
      : undefined,
  };
}

/** Bytes that one expert takes in a format: weights, scales and biases. */
export function expertBytes(sizes: ExpertSizes, format: ExpertFormat): number {
  const { hiddenSize, expertIntermediateSize } = sizes;
  const biases = sizes.expertBias ? 4 * (2 * expertIntermediateSize + hiddenSize) : 0;
  return (
    2 * matrixBytes(format, expertIntermediateSize, hiddenSize) +
    matrixBytes(format, hiddenSize, expertIntermediateSize) +
    biases
  );
}

/** The largest magnitude that a format takes. */
const LARGEST: Readonly<Record<ExpertFormat, number>> = {
  f32: Number.MAX_VALUE,
  f16: F16_MAX,
  int8: Number.MAX_VALUE,
  "int4-g32": 7 * F16_MAX,
  "int4-g64": 7 * F16_MAX,
  "int4-g128": 7 * F16_MAX,
  mxfp4: Number.MAX_VALUE,
};

/**
 * A matrix [rows, columns] in a format of experts; `name` is the matrix's. What is MXFP4 already keeps its bits in mxfp4.
 * Throws WeightOverflowError where a value is not finite or too large, RangeError where columns are no multiple of 8.
 */
export function packMatrix(name: string, tensor: StoredMatrix, format: ExpertFormat): PackedMatrix {
  const [rows, columns] = tensor.shape;
  if (columns % 8 !== 0)
    throw new RangeError(`${name}: ${columns} columns, expected a multiple of 8`);
  if (tensor.dtype === "MXFP4" && format === "mxfp4") {
    if (mayOverflow(tensor)) {
      const largest = maxMagnitude(toF32(plainFloats(tensor)));
      checkMagnitude(name, largest, LARGEST[format], format);
    }
    return packMxfp4(tensor);
  }
  const packed = emptyMatrix(format, rows, columns);
  const rowsAtOnce = Math.max(1, Math.floor(PACKED_AT_ONCE / columns));
  for (let row = 0; row < rows; row += rowsAtOnce) {
    const end = Math.min(rows, row + rowsAtOnce);
    const staged = stageRows(rowsOf(tensor, row, end));
    checkMagnitude(name, staged.largest, LARGEST[format], format);
    if (format.startsWith("int4")) packStagedInt4(format, staged, columns, packed, row);
    else packRows(format, staged.values, columns, packed, row);
  }
  return packed;
}

/** Rows [from, to) of a matrix in plain floats; copies only what has to be decoded. */
function rowsOf(tensor: StoredMatrix, from: number, to: number): HostTensor {
  if (tensor.dtype === "MXFP4") return decodeRows(tensor, from, to);
  const { shape, dtype } = tensor;
  const rowBytes = shape[1] * bytesPerElement(dtype);
  const bytes = tensor.bytes.subarray(from * rowBytes, to * rowBytes);
  return { shape: [to - from, shape[1]], dtype, bytes };
}

/**
 * An expert in a format.
 * Throws RangeError where a shape is not that of the sizes or biases do not fit them, else as `packMatrix`; `name` is the expert's.
 */
export function packExpert(
  name: string,
  weights: StoredExpert,
  sizes: ExpertSizes,
  format: ExpertFormat,
): PackedExpert {
  const tensor = <Part extends keyof StoredExpert>(
    part: Part,
    ...shape: readonly number[]
  ): NonNullable<StoredExpert[Part]> => {
    const has = weights[part];
    if (has === undefined || !isDeepStrictEqual(has.shape, shape)) {
      const got = has === undefined ? "missing" : `shape [${has.shape.join(", ")}]`;
      throw new RangeError(`${name} ${part}: ${got}, expected [${shape.join(", ")}]`);
    }
    return has;
  };
  for (const part of ["gateBias", "upBias", "downBias"] as const) {
    if (!sizes.expertBias && weights[part] !== undefined) {
      throw new RangeError(`${name} ${part}: the model's experts have no biases`);
    }
  }
  return expertFrom(sizes, format, {
    matrix: (rows, columns, of) => packMatrix(`${name} ${of}`, tensor(of, rows, columns), format),
    bias: (length, of) =>
      new Float32Array(convertWeights(`${name} ${of}Bias`, tensor(`${of}Bias`, length), "f32")),
  });
}
