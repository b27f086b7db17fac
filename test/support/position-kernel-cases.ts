/** Kernels between projections and attention: norms, positions, and what is written into the cache. */

import { test } from "node:test";

import * as cpu from "../../core/cpu/operations.ts";
import { ropeTable, rotate } from "../../core/cpu/rope.ts";
import { allocate, type Gpu, UNIFORM, upload } from "../../core/gpu/device.ts";
import { compileHeadLinear } from "../../core/gpu/head-products.ts";
import { COUNTS_BYTES, countsData } from "../../core/gpu/kernels/counts.ts";
import { latentCache } from "../../core/gpu/kernels/latent-cache.ts";
import { ropeCache } from "../../core/gpu/kernels/rope-cache.ts";
import type { RopeConfig } from "../../core/model/config.ts";
import { GEMM, MATVEC } from "./fast-products.ts";
import { assertClose, randomValues, readF32, runKernel, weightsOf, zeros } from "./gpu-fixture.ts";

const POSITIONS = Uint32Array.from([0, 3, 17, 4, 30]);
const SLOTS = Uint32Array.from([9, 2, 0, 7, 5]);
const TOKENS = POSITIONS.length;
const SIZES = { tokens: TOKENS, samples: 0, topK: 1, numSlots: 1 };
const EPS = 1e-6;

function ropeOf(dim: number, interleaved: boolean): RopeConfig {
  return { dim, theta: 10000, interleaved, magnitude: 1.3 };
}

/** Columns [from, to) of every row of a matrix of TOKENS rows. */
function columns(rows: Float32Array, from: number, to: number): Float32Array {
  const width = rows.length / TOKENS;
  return rows.filter((_, i) => i % width >= from && i % width < to);
}

/** The cache [10, width] that holds these rows in their slots. */
function inSlots(rows: Float32Array): Float32Array {
  const width = rows.length / TOKENS;
  const cache = new Float32Array(10 * width);
  SLOTS.forEach((slot, t) => cache.set(rows.subarray(t * width, (t + 1) * width), slot * width));
  return cache;
}

/** Rows of `a` and `b` side by side. */
function beside(a: Float32Array, b: Float32Array): Float32Array {
  const [wa, wb] = [a.length / TOKENS, b.length / TOKENS];
  return Float32Array.from({ length: a.length + b.length }, (_, i) => {
    const [row, column] = [Math.floor(i / (wa + wb)), i % (wa + wb)];
    return column < wa ? a[row * wa + column] : b[row * wb + column - wa];
  });
}

/** Declares the cases on an open device. */
export function positionCases(gpu: Gpu): void {
  for (const [norm, clip, interleaved] of [
    ["none", undefined, true],
    ["head", undefined, false],
    ["whole", 0.9, false],
  ] as const) {
    test(`rope-cache with ${norm} norm${clip ? ", clipped" : ""}${interleaved ? ", interleaved" : ""}`, async () => {
      const [numHeads, numKvHeads, headDim] = [6, 2, 20];
      const [q, kv] = [numHeads * headDim, numKvHeads * headDim];
      const projected = randomValues(TOKENS * (q + 2 * kv), 70, 2);
      const scales = randomValues(norm === "head" ? 2 * headDim : q + kv, 71);
      const rope = ropeOf(headDim, interleaved);
      const table = ropeTable(32, rope);
      const outQ = zeros(gpu, TOKENS * q);
      const cache = zeros(gpu, 10 * 2 * kv);
      await runKernel(
        gpu,
        ropeCache({ numHeads, numKvHeads, headDim, norm, eps: EPS, clip, interleaved }),
        SIZES,
        [projected, table, POSITIONS, SLOTS, outQ, cache, ...(norm === "none" ? [] : [scales])],
      );
      const scaleOf = { none: 0, head: headDim, whole: q }[norm];
      const clamp = (value: number) => Math.max(-(clip ?? 1e9), Math.min(value, clip ?? 1e9));
      const normed = (values: Float32Array, scale: Float32Array) =>
        (norm === "none" ? values : cpu.rmsNorm(values, scale, EPS)).map(clamp);
      const expectedQ = normed(columns(projected, 0, q), scales.subarray(0, scaleOf));
      const expectedK = normed(columns(projected, q, q + kv), scales.subarray(scaleOf));
      rotate(expectedQ, POSITIONS, table, rope);
      rotate(expectedK, POSITIONS, table, rope);
      const expectedV = columns(projected, q + kv, q + 2 * kv).map(clamp);
      assertClose(await readF32(gpu, outQ, expectedQ.length), expectedQ, 1e-5);
      const expected = inSlots(beside(expectedK, expectedV));
      assertClose(await readF32(gpu, cache, expected.length), expected, 1e-5);
    });
  }

  for (const interleaved of [true, false]) {
    const pairs = interleaved ? "interleaved" : "half-split";
    test(`latent-cache norms the latent vector and turns ${pairs} pairs of the key`, async () => {
      const [rank, ropeDim, before] = [36, 12, 8];
      const projected = randomValues(TOKENS * (before + rank + ropeDim), 72, 2);
      const scale = randomValues(rank, 73);
      const rope = ropeOf(ropeDim, interleaved);
      const table = ropeTable(32, rope);
      const cache = zeros(gpu, 10 * (rank + ropeDim));
      await runKernel(
        gpu,
        latentCache({
          rank,
          ropeDim,
          rowWidth: before + rank + ropeDim,
          firstColumn: before,
          eps: EPS,
          interleaved,
        }),
        SIZES,
        [projected, scale, table, POSITIONS, SLOTS, cache],
      );
      const latent = cpu.rmsNorm(columns(projected, before, before + rank), scale, EPS);
      const key = columns(projected, before + rank, before + rank + ropeDim);
      rotate(key, POSITIONS, table, rope);
      const expected = inSlots(beside(latent, key));
      assertClose(await readF32(gpu, cache, expected.length), expected, 1e-5);
    });
  }

  for (const [name, dtype, candidate] of [
    ["plain ×1", "f16", { kind: "plain", rows: 1 }],
    ["plain ×4", "f32", { kind: "plain", rows: 4 }],
    ["matvec", "f16", MATVEC],
    ["gemm", "f32", GEMM],
  ] as const) {
    test(`${name} ${dtype} multiplies every head by its matrix and turns the columns behind`, async () => {
      const [numHeads, k, n, dim] = [3, 24, 20, 8];
      const headStride = k + dim;
      const tokenStride = numHeads * headStride + 4;
      const x = randomValues(TOKENS * tokenStride, 74);
      const weights = weightsOf(randomValues(numHeads * n * k, 75, 0.3), dtype);
      const rope = ropeOf(dim, true);
      const table = ropeTable(32, rope);
      const outStride = n + dim;
      const shape = { numHeads, k, n, headStride, tokenStride, outStride, rope };
      const product = await compileHeadLinear(gpu, () => [{ from: 1, candidate }], {
        ...shape,
        weights: dtype,
      });
      const counts = allocate(gpu, "counts", COUNTS_BYTES, UNIFORM);
      gpu.device.queue.writeBuffer(counts, 0, countsData(SIZES));
      const put = (values: ArrayBufferView) => upload(gpu, "input", values);
      const out = zeros(gpu, TOKENS * numHeads * outStride);
      const encoder = gpu.device.createCommandEncoder();
      const pass = encoder.beginComputePass();
      const inputs = [put(x), put(weights.device)] as const;
      for (const run of product.bind(counts, ...inputs, out, put(table), put(POSITIONS))) {
        run.encode(pass, SIZES);
      }
      pass.end();
      gpu.device.queue.submit([encoder.finish()]);
      let expected: Float32Array = new Float32Array(0);
      for (let head = 0; head < numHeads; head++) {
        const at = head * headStride;
        const matrix = weights.exact.subarray(head * n * k, (head + 1) * n * k);
        const behind = columns(x, at + k, at + headStride);
        rotate(behind, POSITIONS, table, rope);
        const multiplied = cpu.linear(columns(x, at, at + k), matrix, k);
        expected = beside(expected, beside(multiplied, behind));
      }
      assertClose(await readF32(gpu, out, expected.length), expected, 1e-5);
    });
  }
}
