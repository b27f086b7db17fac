/** The engine's operations in plain loops over f32 arrays: the oracle of the kernels, and what `--device cpu` runs. */

import { F16_MAX } from "../tensor.ts";

/** weights[ids[t], :] for each token: [numTokens, hiddenSize]. */
export function embed(weights: Float32Array, ids: Uint32Array, hiddenSize: number): Float32Array {
  const out = new Float32Array(ids.length * hiddenSize);
  ids.forEach((id, t) => {
    out.set(weights.subarray(id * hiddenSize, (id + 1) * hiddenSize), t * hiddenSize);
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

/** Each row of x [rows, n] rounded to f16 values, unless a value of the row is beyond ±65504. */
export function roundRows(x: Float32Array, n: number): Float32Array {
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

/** silu(x · gateᵀ) * (x · upᵀ), gate above up in `weights` [2n, k]: [rows, n]. */
export function gateUp(x: Float32Array, weights: Float32Array, k: number): Float32Array {
  const both = linear(x, weights, k);
  const n = weights.length / k / 2;
  const out = new Float32Array(both.length / 2);
  for (let i = 0; i < out.length; i++) {
    const row = Math.floor(i / n);
    const g = both[row * 2 * n + (i % n)];
    out[i] = (g / (1 + Math.exp(-g))) * both[row * 2 * n + n + (i % n)];
  }
  return out;
}

/** The FFN down(silu(gate·x) * up·x), gate above up in `gateUpWeights` [2n, k], `down` [k, n]: [rows, k]. */
export function swiGlu(
  x: Float32Array,
  gateUpWeights: Float32Array,
  down: Float32Array,
  k: number,
): Float32Array {
  return linear(gateUp(x, gateUpWeights, k), down, down.length / k);
}

/** Cosine and sine of each position and pair, [maxPositions, headDim/2, 2], rounded as float32 arithmetic rounds. */
export function ropeTable(maxPositions: number, headDim: number, theta: number): Float32Array {
  const half = headDim / 2;
  const table = new Float32Array(maxPositions * headDim);
  const frequencies = Float32Array.from(
    { length: half },
    (_, i) => 1 / theta ** ((2 * i) / headDim),
  );
  for (let position = 0; position < maxPositions; position++) {
    for (let i = 0; i < half; i++) {
      const angle = Math.fround(position * frequencies[i]);
      table[position * headDim + 2 * i] = Math.cos(angle);
      table[position * headDim + 2 * i + 1] = Math.sin(angle);
    }
  }
  return table;
}

/** Turns the half-split pairs of every head of x [rows, heads·headDim] by the row's position, in place. */
export function rotate(
  x: Float32Array,
  positions: Uint32Array,
  table: Float32Array,
  headDim: number,
): void {
  const half = headDim / 2;
  const width = x.length / positions.length;
  positions.forEach((position, row) => {
    for (let head = row * width; head < (row + 1) * width; head += headDim) {
      for (let i = 0; i < half; i++) {
        const c = table[position * headDim + 2 * i];
        const s = table[position * headDim + 2 * i + 1];
        const a = x[head + i];
        const b = x[head + half + i];
        x[head + i] = a * c - b * s;
        x[head + half + i] = b * c + a * s;
      }
    }
  });
}

/** Where attention finds the keys and values of a batch. */
export interface PagedCache {
  /** [numSlots, 2, numKvHeads·headDim], k before v. */
  readonly values: Float32Array;
  /** Cache slot of a position of the token's sequence. */
  readonly slotOf: (token: number, position: number) => number;
}

/** Causal attention of each query q [numTokens, numHeads·headDim] over its sequence's cache: same shape. */
export function attention(
  q: Float32Array,
  positions: Uint32Array,
  cache: PagedCache,
  sizes: { readonly numHeads: number; readonly numKvHeads: number; readonly headDim: number },
): Float32Array {
  const { numHeads, numKvHeads, headDim } = sizes;
  const out = new Float32Array(q.length);
  const kvWidth = numKvHeads * headDim;
  const { values } = cache;
  positions.forEach((last, token) => {
    const slots = Array.from({ length: last + 1 }, (_, position) => cache.slotOf(token, position));
    const p = new Float32Array(last + 1);
    for (let head = 0; head < numHeads; head++) {
      const offset = Math.floor(head / (numHeads / numKvHeads)) * headDim;
      const base = (token * numHeads + head) * headDim;
      let top = Number.NEGATIVE_INFINITY;
      for (let j = 0; j <= last; j++) {
        const k = slots[j] * 2 * kvWidth + offset;
        let score = 0;
        for (let d = 0; d < headDim; d++) score += q[base + d] * values[k + d];
        p[j] = score / Math.sqrt(headDim);
        top = Math.max(top, p[j]);
      }
      let sum = 0;
      for (let j = 0; j <= last; j++) {
        p[j] = Math.exp(p[j] - top);
        sum += p[j];
      }
      for (let j = 0; j <= last; j++) {
        const v = (slots[j] * 2 + 1) * kvWidth + offset;
        for (let d = 0; d < headDim; d++) out[base + d] += (p[j] / sum) * values[v + d];
      }
    }
  });
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

/** Softmax over router logits [numTokens, numExperts], then the top-k: ids and weights [numTokens, topK], most likely first. */
export function softmaxTopK(
  logits: Float32Array,
  numExperts: number,
  topK: number,
  normTopkProb: boolean,
): { ids: Uint32Array; weights: Float32Array } {
  const rows = logits.length / numExperts;
  const ids = new Uint32Array(rows * topK);
  const weights = new Float32Array(rows * topK);
  for (let row = 0; row < rows; row++) {
    const of = logits.subarray(row * numExperts, (row + 1) * numExperts);
    const all = logSumExp(of);
    const chosen = topIndices(of, topK);
    const p = chosen.map((e) => Math.exp(of[e] - all));
    const divisor = normTopkProb ? p.reduce((a, b) => a + b, 0) : 1;
    ids.set(chosen, row * topK);
    weights.set(
      p.map((value) => value / divisor),
      row * topK,
    );
  }
  return { ids, weights };
}

/** 1 / (1 + e^-x). */
export function sigmoid(x: number): number {
  return 1 / (1 + Math.exp(-x));
}
