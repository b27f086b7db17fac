/** Matrices that a checkpoint has in MXFP4: kept as they are for a device that takes them so, decoded for any other use. */

import { emptyMatrix, type PackedMatrix, rowScaleWords } from "../expert-format.ts";
import { decodeMxfp4, MXFP4_GROUP } from "../model/checkpoint/block-scales.ts";
import { bytesOf, type HostTensor, type Mxfp4Matrix, type StoredMatrix } from "../tensor.ts";

/** Rows [from, to) of a matrix in BF16, exactly; a value beyond its range is infinite, one under NaN's scale is NaN. */
export function decodeRows({ shape, bytes, scales }: Mxfp4Matrix, from: number, to: number) {
  const groups = shape[1] / MXFP4_GROUP;
  const blocks = bytes.subarray((from * shape[1]) / 2, (to * shape[1]) / 2);
  const decoded = decodeMxfp4(blocks, scales.subarray(from * groups, to * groups));
  return { shape: [to - from, shape[1]], dtype: "BF16", bytes: decoded } satisfies HostTensor;
}

/** The matrix in plain floats; MXFP4 becomes BF16. */
export function plainFloats(matrix: StoredMatrix): HostTensor {
  return matrix.dtype === "MXFP4" ? decodeRows(matrix, 0, matrix.shape[0]) : matrix;
}

/** Scales up to this one keep every code within f32. */
const LARGEST_SURE_SCALE = 252;

/** Whether a value may not be finite: under so large a scale, or that of NaN. */
export function mayOverflow({ scales }: Mxfp4Matrix): boolean {
  let largest = 0;
  for (let i = 0; i < scales.length; i++) if (scales[i] > largest) largest = scales[i];
  return largest > LARGEST_SURE_SCALE;
}

/** The matrix as devices hold `mxfp4`: the same codes and scales, the scales of each row padded. */
export function packMxfp4({ shape, bytes, scales }: Mxfp4Matrix): PackedMatrix {
  const [rows, columns] = shape;
  const packed = emptyMatrix("mxfp4", rows, columns);
  bytesOf(packed.weights).set(bytes);
  const padded = bytesOf(packed.scales);
  const groups = columns / MXFP4_GROUP;
  const apart = 4 * rowScaleWords("mxfp4", columns);
  if (apart === groups) {
    padded.set(scales);
    return packed;
  }
  for (let row = 0; row < rows; row++) {
    padded.set(scales.subarray(row * groups, (row + 1) * groups), row * apart);
  }
  return packed;
}
