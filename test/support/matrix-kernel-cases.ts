/** The kernels that multiply by weights, against the plain loops. */

import assert from "node:assert/strict";
import { test } from "node:test";

import * as ffns from "../../core/cpu/ffn.ts";
import * as cpu from "../../core/cpu/operations.ts";
import { ropeTable, rotate } from "../../core/cpu/rope.ts";
import type { WeightsDtype } from "../../core/expert-device.ts";
import { allocate, type Gpu, STORAGE } from "../../core/gpu/device.ts";
import { combine } from "../../core/gpu/kernels/combine.ts";
import { embed } from "../../core/gpu/kernels/embed.ts";
import { gateUp } from "../../core/gpu/kernels/gate-up.ts";
import { groupBySlot } from "../../core/gpu/kernels/group-by-slot.ts";
import { inputLoads } from "../../core/gpu/kernels/shared-input.ts";
import { linear } from "../../core/gpu/kernels/linear.ts";
import { qkvRope } from "../../core/gpu/kernels/qkv-rope.ts";
import {
  GROUP_ROWS,
  groupStride,
  type Lookup,
  maxGroupedTiles,
} from "../../core/gpu/kernels/tile.ts";
import { assertClose, randomValues, readF32, runKernel, weightsOf, zeros } from "./gpu-fixture.ts";
import type { KernelShapes } from "./kernel-suite.ts";

const DTYPES: readonly WeightsDtype[] = ["f16", "f32"];
const NONE = 0xffffffff;

/** Rows of an input, and the columns of input and result. */
const PRODUCTS: Readonly<Record<KernelShapes, readonly (readonly [number, number, number])[]>> = {
  all: [
    [1, 8, 4],
    [7, 40, 36],
    [5, 200, 132],
  ],
  few: [[7, 40, 36]],
};

/** Routing of rows over slots, some of them empty, as (slot, weight bits). */
export function randomRouting(rows: number, topK: number, numSlots: number, seed: number) {
  const draws = randomValues(rows * topK * 2, seed);
  const slots = new Uint32Array(rows * topK);
  const weights = new Float32Array(rows * topK);
  for (let i = 0; i < slots.length; i++) {
    const slot = Math.floor(((draws[2 * i] + 1) / 2) * (numSlots + 1));
    slots[i] = slot >= numSlots ? NONE : slot;
    weights[i] = slots[i] === NONE ? 0 : draws[2 * i + 1];
  }
  const bits = new Uint32Array(weights.buffer);
  const interleaved = Uint32Array.from({ length: slots.length * 2 }, (_, i) =>
    i % 2 === 0 ? slots[i >> 1] : bits[i >> 1],
  );
  return { slots, weights, interleaved };
}

/** Declares the cases on an open device. */
export function matrixKernelCases(gpu: Gpu, shapes: KernelShapes): void {
  for (const dtype of DTYPES) {
    // One way of loading with each dtype: they have nothing to do with each other.
    const loads = dtype === "f16" ? inputLoads(gpu.offers) : "own";
    for (const [tokens, hiddenSize] of [
      [1, 8],
      [5, 72],
      [3, 264],
    ] as const) {
      test(`embed ${dtype} gives the rows of ${tokens} ids, hidden ${hiddenSize}`, async () => {
        const table = weightsOf(randomValues(11 * hiddenSize, 1), dtype);
        const ids = Uint32Array.from({ length: tokens }, (_, i) => (i * 7 + 3) % 11);
        const out = zeros(gpu, tokens * hiddenSize);
        await runKernel(
          gpu,
          embed({ hiddenSize, weights: dtype, slice: { firstRow: 0, rows: 11 }, factor: 1 }),
          { tokens, samples: 0, topK: 1, numSlots: 1 },
          [ids, table.device, out],
        );
        assert.deepEqual(
          await readF32(gpu, out, tokens * hiddenSize),
          cpu.embed(table.exact, ids, hiddenSize),
        );
      });
    }

    for (const rows of [1, 4] as const) {
      for (const [tokens, k, n] of PRODUCTS[shapes]) {
        const lookup: Lookup = { kind: "tokens", rows };
        const x = randomValues(tokens * k, 2);
        const weights = weightsOf(randomValues(n * k, 3, 0.2), dtype);
        const expected = cpu.linear(x, weights.exact, k);
        test(`linear ${dtype} ×${rows}: ${tokens} rows, ${k}→${n}`, async () => {
          const out = zeros(gpu, tokens * n);
          await runKernel(
            gpu,
            linear({ k, n, weights: dtype, loads, lookup, epilogue: "store" }),
            { tokens, samples: 0, topK: 1, numSlots: 1 },
            [x, weights.device, out],
          );
          assertClose(await readF32(gpu, out, tokens * n), expected, 1e-5);
        });
        test(`linear ${dtype} ×${rows} adds and scales: ${tokens} rows, ${k}→${n}`, async () => {
          const before = randomValues(tokens * n, 4);
          const scale = randomValues(tokens, 5);
          const added = await runKernel(
            gpu,
            linear({ k, n, weights: dtype, loads, lookup, epilogue: "add" }),
            { tokens, samples: 0, topK: 1, numSlots: 1 },
            [x, weights.device, before],
          );
          assertClose(
            await readF32(gpu, added[2], tokens * n),
            before.map((v, i) => v + expected[i]),
            1e-5,
          );
          const scaled = await runKernel(
            gpu,
            linear({ k, n, weights: dtype, loads, lookup, epilogue: "addScaled" }),
            { tokens, samples: 0, topK: 1, numSlots: 1 },
            [x, weights.device, before, scale],
          );
          assertClose(
            await readF32(gpu, scaled[2], tokens * n),
            before.map((v, i) => v + scale[Math.floor(i / n)] * expected[i]),
            1e-5,
          );
        });
        test(`gate-up ${dtype} ×${rows}: ${tokens} rows, ${k}→${n}`, async () => {
          const width = n + (n % 2);
          const both = weightsOf(randomValues(2 * width * k, 6, 0.3), dtype);
          const out = zeros(gpu, tokens * width);
          await runKernel(
            gpu,
            gateUp({ hiddenSize: k, intermediateSize: width, weights: dtype, loads, lookup }),
            { tokens, samples: 0, topK: 1, numSlots: 1 },
            [x, both.device, out],
          );
          assertClose(await readF32(gpu, out, tokens * width), ffns.gateUp(x, both.exact, k), 1e-5);
        });
      }

      test(`qkv-rope ${dtype} ×${rows} turns q and k and writes k and v to their cache slots`, async () => {
        const [tokens, hiddenSize, numHeads, numKvHeads, headDim] = [5, 40, 3, 1, 12];
        const columns = (numHeads + 2 * numKvHeads) * headDim;
        const kv = numKvHeads * headDim;
        const x = randomValues(tokens * hiddenSize, 7);
        const weights = weightsOf(randomValues(columns * hiddenSize, 8, 0.3), dtype);
        const bias = randomValues(columns, 9);
        const positions = Uint32Array.from([0, 3, 17, 4, 30]);
        const slots = Uint32Array.from([9, 2, 0, 7, 5]);
        const turns = { dim: headDim, theta: 10000, interleaved: false, magnitude: 1 };
        const rope = ropeTable(32, turns);
        const q = zeros(gpu, tokens * numHeads * headDim);
        const cache = zeros(gpu, 10 * 2 * kv);
        await runKernel(
          gpu,
          qkvRope({ hiddenSize, numHeads, numKvHeads, headDim, weights: dtype, loads, rows }),
          { tokens, samples: 0, topK: 1, numSlots: 1 },
          [x, weights.device, bias, rope, positions, slots, q, cache],
        );
        const all = cpu.linear(x, weights.exact, hiddenSize, bias);
        const part = (from: number, to: number) =>
          Float32Array.from(
            Array.from({ length: tokens }, (_, t) => [
              ...all.subarray(t * columns + from, t * columns + to),
            ]).flat(),
          );
        const expectedQ = part(0, numHeads * headDim);
        const expectedK = part(numHeads * headDim, numHeads * headDim + kv);
        const expectedV = part(numHeads * headDim + kv, columns);
        rotate(expectedQ, positions, rope, turns);
        rotate(expectedK, positions, rope, turns);
        const expectedCache = new Float32Array(10 * 2 * kv);
        slots.forEach((slot, t) => {
          expectedCache.set(expectedK.subarray(t * kv, (t + 1) * kv), slot * 2 * kv);
          expectedCache.set(expectedV.subarray(t * kv, (t + 1) * kv), (slot * 2 + 1) * kv);
        });
        assertClose(await readF32(gpu, q, expectedQ.length), expectedQ, 1e-5);
        assertClose(await readF32(gpu, cache, expectedCache.length), expectedCache, 1e-5);
      });
    }

    for (const [rows, topK, numSlots] of [
      [1, 2, 3],
      [9, 3, 5],
      [70, 4, 33],
    ] as const) {
      const hiddenSize = 40;
      const width = 24;
      test(`experts ${dtype}: direct and grouped lookups give the sums of ${rows} rows, top ${topK} of ${numSlots} slots`, async () => {
        const x = randomValues(rows * hiddenSize, 10);
        const routing = randomRouting(rows, topK, numSlots, 11);
        const both = weightsOf(randomValues(numSlots * 2 * width * hiddenSize, 12, 0.3), dtype);
        const down = weightsOf(randomValues(numSlots * hiddenSize * width, 13, 0.3), dtype);
        const expected = new Float32Array(rows * hiddenSize);
        routing.slots.forEach((slot, pair) => {
          if (slot === NONE) return;
          const row = Math.floor(pair / topK);
          const y = ffns.ffn(
            x.subarray(row * hiddenSize, (row + 1) * hiddenSize),
            both.exact.subarray(slot * 2 * width * hiddenSize, (slot + 1) * 2 * width * hiddenSize),
            down.exact.subarray(slot * hiddenSize * width, (slot + 1) * hiddenSize * width),
            hiddenSize,
          );
          y.forEach(
            (value, i) => (expected[row * hiddenSize + i] += routing.weights[pair] * value),
          );
        });
        const sizes = { tokens: rows, samples: 0, topK, numSlots };
        const tiles = allocate(
          gpu,
          "tiles",
          maxGroupedTiles(rows, topK, numSlots) * groupStride(GROUP_ROWS) * 4,
          STORAGE,
        );
        const [shared] = await runKernel(gpu, groupBySlot(), sizes, [routing.interleaved, tiles]);
        const lookups: readonly (readonly [Lookup, GPUBuffer])[] = [
          [{ kind: "direct", rows: 1 }, shared],
          [{ kind: "grouped", rows: 4 }, tiles],
        ];
        for (const [lookup, found] of lookups) {
          const act = zeros(gpu, rows * topK * width);
          const pairs = zeros(gpu, rows * topK * hiddenSize);
          const sums = zeros(gpu, rows * hiddenSize);
          await runKernel(
            gpu,
            gateUp({ hiddenSize, intermediateSize: width, weights: dtype, loads, lookup }),
            sizes,
            [x, both.device, act, found],
          );
          await runKernel(
            gpu,
            linear({ k: width, n: hiddenSize, weights: dtype, loads, lookup, epilogue: "store" }),
            sizes,
            [act, down.device, pairs, found],
          );
          await runKernel(gpu, combine(hiddenSize), sizes, [pairs, shared, sums]);
          assertClose(await readF32(gpu, sums, expected.length), expected, 2e-5);
        }
      });
    }
  }
}
