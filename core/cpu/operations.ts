/** The engine's operations in plain loops over f32 arrays: the oracle of the kernels, and what `--device cpu` runs. */

import { roundRowsInt8 } from "../int8-rows.ts";
import type { WireSetting } from "../wire-rows.ts";
import { F16_MAX } from "../tensor.ts";

/** weights[ids[t], :] · factor for each token: [numTokens, hiddenSize]. */
export function embed(
  weights: Float32Array,
  ids: Uint32Array,
  hiddenSize: number,
  factor = 1,
): Float32Array {
  const out = new Float32Array(ids.length * hiddenSize);
  ids.forEach((id, t) => {
    const row = weights.subarray(id * hiddenSize, (id + 1) * hiddenSize);
    for (let i = 0; i < hiddenSize; i++) out[t * hiddenSize + i] = row[i] * factor;
  });
  return out;
}

/** Each row of x [rows, n] divided by its root mean square and multiplied by scale [n]. */
export function rmsNorm(x: Float32Array, scale: Float32Array, eps: number): Float32Array {
  const n = scale.length;
  const out = new Float32Array(x.length);
  for (let start = 0; start < x.length; start += n) {
    let squares = 0;
    for (let i = 0; i < n; i++) squares += x[start + i] * x[start + i];
    const factor = 1 / Math.sqrt(squares / n + eps);
    for (let i = 0; i < n; i++) out[start + i] = x[start + i] * factor * scale[i];
  }
  return out;
}

/** Rows x [rows, n] as the wire carries them: in f16, unless a value of the row is beyond ±65504; in int8; or as they are. */
export function roundRows(x: Float32Array, n: number, wire: WireSetting): Float32Array {
  if (wire === "f32") return x;
  if (wire === "int8") return roundRowsInt8(x, n);
  const out = x.slice();
  for (let start = 0; start < x.length; start += n) {
    const row = x.subarray(start, start + n);
    if (row.some((value) => !(Math.abs(value) <= F16_MAX))) continue;
    for (let i = 0; i < n; i++) out[start + i] = Math.f16round(row[i]);
  }
  return out;
}

/** x [rows, k] · weightsᵀ [n, k] (+ bias [n]): [rows, n]. */
export function linear(
  x: Float32Array,
  weights: Float32Array,
  k: number,
  bias?: Float32Array,
): Float32Array {
  const n = weights.length / k;
  const rows = x.length / k;
  const out = new Float32Array(rows * n);
  for (let row = 0; row < rows; row++) {
    for (let col = 0; col < n; col++) {
      const a = row * k;
      const b = col * k;
      let s0 = 0;
      let s1 = 0;
      let s2 = 0;
      let s3 = 0;
      let i = 0;
      for (; i + 4 <= k; i += 4) {
        s0 += x[a + i] * weights[b + i];
        s1 += x[a + i + 1] * weights[b + i + 1];
        s2 += x[a + i + 2] * weights[b + i + 2];
        s3 += x[a + i + 3] * weights[b + i + 3];
      }
      for (; i < k; i++) s0 += x[a + i] * weights[b + i];
      out[row * n + col] = s0 + s1 + s2 + s3 + (bias === undefined ? 0 : bias[col]);
    }
  }
  return out;
}

/** Indices of the `k` largest of a row, largest first, ties by lower index. */
export function topIndices(row: Float32Array, k: number): number[] {
  return Array.from(row.keys())
    .sort((a, b) => row[b] - row[a] || a - b)
    .slice(0, k);
}

/** ln of the sum of exp over a row. */
export function logSumExp(row: Float32Array): number {
  let top = Number.NEGATIVE_INFINITY;
  for (const value of row) top = Math.max(top, value);
  let sum = 0;
  for (const value of row) sum += Math.exp(value - top);
  return top + Math.log(sum);
}
