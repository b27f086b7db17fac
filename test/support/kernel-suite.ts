/** Every kernel against the plain loops, on ragged sizes; run once per adapter. */

import assert from "node:assert/strict";
import { after, describe, test } from "node:test";

import * as cpu from "../../core/cpu/operations.ts";
import type { WeightsDtype } from "../../core/expert-device.ts";
import { allocate, type Gpu, openGpu, STORAGE } from "../../core/gpu/device.ts";
import { add } from "../../core/gpu/kernels/add.ts";
import { attention } from "../../core/gpu/kernels/attention.ts";
import { combine } from "../../core/gpu/kernels/combine.ts";
import { embed } from "../../core/gpu/kernels/embed.ts";
import { gate } from "../../core/gpu/kernels/gate.ts";
import { gateUp } from "../../core/gpu/kernels/gate-up.ts";
import { groupBySlot } from "../../core/gpu/kernels/group-by-slot.ts";
import { linear } from "../../core/gpu/kernels/linear.ts";
import { qkvRope } from "../../core/gpu/kernels/qkv-rope.ts";
import { rmsNorm } from "../../core/gpu/kernels/rms-norm.ts";
import { rmsNormRound } from "../../core/gpu/kernels/rms-norm-round.ts";
import { GROUP_STRIDE, type Lookup, maxGroupedTiles } from "../../core/gpu/kernels/tile.ts";
import { candidateStride, topCandidates } from "../../core/gpu/kernels/top-candidates.ts";
import { f32ToF16 } from "../../core/tensor.ts";
import { randomValues, readBuffer, runKernel, zeros } from "./gpu-fixture.ts";

const DTYPES: readonly WeightsDtype[] = ["f16", "f32"];
const NONE = 0xffffffff;

/** Weights as the device gets them, and the values that those stand for. */
function weightsOf(values: Float32Array, dtype: WeightsDtype) {
  if (dtype === "f32") return { device: values, exact: values };
  const halves = f32ToF16(values);
  return { device: halves, exact: Float32Array.from(halves) };
}

function assertClose(actual: Float32Array, expected: Float32Array, tolerance: number): void {
  assert.equal(actual.length, expected.length);
  for (let i = 0; i < expected.length; i++) {
    const allowed = tolerance * Math.max(1, Math.abs(expected[i]));
    if (!(Math.abs(actual[i] - expected[i]) <= allowed)) {
      assert.fail(`[${i}]: ${actual[i]}, expected ${expected[i]} ± ${allowed}`);
    }
  }
}

/** Routing of rows over slots, some of them empty, as (slot, weight bits). */
function randomRouting(rows: number, topK: number, numSlots: number, seed: number) {
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

/** Declares the suite for the adapter that the process environment selects. */
export async function kernelSuite(name: string, adapterPattern: RegExp): Promise<void> {
  const gpu: Gpu = await openGpu();
  void gpu.lost.then((reason) => {
    throw new Error(reason);
  });
  const f32 = async (buffer: GPUBuffer, length: number) =>
    new Float32Array(await readBuffer(gpu, buffer, length * 4));

  describe(`kernels on ${name}`, () => {
    after(() => gpu.close());

    test(`the adapter is ${name}`, () => {
      assert.match(gpu.adapter, adapterPattern);
    });

    for (const dtype of DTYPES) {
      for (const [tokens, hiddenSize] of [
        [1, 8],
        [5, 72],
        [3, 264],
      ] as const) {
        test(`embed ${dtype} gives the rows of ${tokens} ids, hidden ${hiddenSize}`, async () => {
          const table = weightsOf(randomValues(11 * hiddenSize, 1), dtype);
          const ids = Uint32Array.from({ length: tokens }, (_, i) => (i * 7 + 3) % 11);
          const out = zeros(gpu, tokens * hiddenSize);
          await runKernel(gpu, embed({ hiddenSize, weights: dtype }), { tokens, samples: 0 }, [
            ids,
            table.device,
            out,
          ]);
          assert.deepEqual(
            await f32(out, tokens * hiddenSize),
            cpu.embed(table.exact, ids, hiddenSize),
          );
        });
      }

      for (const rows of [1, 4] as const) {
        for (const [tokens, k, n] of [
          [1, 8, 4],
          [7, 40, 33],
          [5, 200, 130],
        ] as const) {
          const lookup: Lookup = { kind: "tokens", rows };
          const x = randomValues(tokens * k, 2);
          const weights = weightsOf(randomValues(n * k, 3, 0.2), dtype);
          const expected = cpu.linear(x, weights.exact, k);
          test(`linear ${dtype} ×${rows}: ${tokens} rows, ${k}→${n}`, async () => {
            const out = zeros(gpu, tokens * n);
            await runKernel(
              gpu,
              linear({ k, n, weights: dtype, lookup, epilogue: "store" }),
              { tokens, samples: 0 },
              [x, weights.device, out],
            );
            assertClose(await f32(out, tokens * n), expected, 1e-5);
          });
          test(`linear ${dtype} ×${rows} adds and scales: ${tokens} rows, ${k}→${n}`, async () => {
            const before = randomValues(tokens * n, 4);
            const scale = randomValues(tokens, 5);
            const added = await runKernel(
              gpu,
              linear({ k, n, weights: dtype, lookup, epilogue: "add" }),
              { tokens, samples: 0 },
              [x, weights.device, before],
            );
            assertClose(
              await f32(added[2], tokens * n),
              before.map((v, i) => v + expected[i]),
              1e-5,
            );
            const scaled = await runKernel(
              gpu,
              linear({ k, n, weights: dtype, lookup, epilogue: "addScaled" }),
              { tokens, samples: 0 },
              [x, weights.device, before, scale],
            );
            assertClose(
              await f32(scaled[2], tokens * n),
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
              gateUp({ hiddenSize: k, intermediateSize: width, weights: dtype, lookup }),
              { tokens, samples: 0 },
              [x, both.device, out],
            );
            assertClose(await f32(out, tokens * width), cpu.gateUp(x, both.exact, k), 1e-5);
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
          const rope = cpu.ropeTable(32, headDim, 10000);
          const q = zeros(gpu, tokens * numHeads * headDim);
          const cache = zeros(gpu, 10 * 2 * kv);
          await runKernel(
            gpu,
            qkvRope({ hiddenSize, numHeads, numKvHeads, headDim, weights: dtype, rows }),
            { tokens, samples: 0 },
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
          cpu.rotate(expectedQ, positions, rope, headDim);
          cpu.rotate(expectedK, positions, rope, headDim);
          const expectedCache = new Float32Array(10 * 2 * kv);
          slots.forEach((slot, t) => {
            expectedCache.set(expectedK.subarray(t * kv, (t + 1) * kv), slot * 2 * kv);
            expectedCache.set(expectedV.subarray(t * kv, (t + 1) * kv), (slot * 2 + 1) * kv);
          });
          assertClose(await f32(q, expectedQ.length), expectedQ, 1e-5);
          assertClose(await f32(cache, expectedCache.length), expectedCache, 1e-5);
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
            const y = cpu.swiGlu(
              x.subarray(row * hiddenSize, (row + 1) * hiddenSize),
              both.exact.subarray(
                slot * 2 * width * hiddenSize,
                (slot + 1) * 2 * width * hiddenSize,
              ),
              down.exact.subarray(slot * hiddenSize * width, (slot + 1) * hiddenSize * width),
              hiddenSize,
            );
            y.forEach(
              (value, i) => (expected[row * hiddenSize + i] += routing.weights[pair] * value),
            );
          });
          const sizes = { tokens: rows, samples: 0 };
          const tiles = allocate(
            gpu,
            "tiles",
            maxGroupedTiles(rows, topK, numSlots) * GROUP_STRIDE * 4,
            STORAGE,
          );
          const [shared] = await runKernel(gpu, groupBySlot({ topK, numSlots }), sizes, [
            routing.interleaved,
            tiles,
          ]);
          const lookups: readonly (readonly [Lookup, GPUBuffer])[] = [
            [{ kind: "direct", rows: 1, topK }, shared],
            [{ kind: "grouped", rows: 4, topK, numSlots }, tiles],
          ];
          for (const [lookup, found] of lookups) {
            const act = zeros(gpu, rows * topK * width);
            const pairs = zeros(gpu, rows * topK * hiddenSize);
            const sums = zeros(gpu, rows * hiddenSize);
            await runKernel(
              gpu,
              gateUp({ hiddenSize, intermediateSize: width, weights: dtype, lookup }),
              sizes,
              [x, both.device, act, found],
            );
            await runKernel(
              gpu,
              linear({ k: width, n: hiddenSize, weights: dtype, lookup, epilogue: "store" }),
              sizes,
              [act, down.device, pairs, found],
            );
            await runKernel(gpu, combine({ hiddenSize, topK }), sizes, [pairs, shared, sums]);
            assertClose(await f32(sums, expected.length), expected, 2e-5);
          }
        });
      }
    }

    for (const [tokens, hiddenSize] of [
      [1, 8],
      [5, 72],
      [3, 1032],
    ] as const) {
      test(`rms-norm of ${tokens} rows of ${hiddenSize}, all or sampled`, async () => {
        const hidden = randomValues(tokens * hiddenSize, 20, 3);
        const scale = randomValues(hiddenSize, 21);
        const expected = cpu.rmsNorm(hidden, scale, 1e-6);
        const out = zeros(gpu, tokens * hiddenSize);
        await runKernel(
          gpu,
          rmsNorm({ hiddenSize, eps: 1e-6, rows: "tokens" }),
          { tokens, samples: 0 },
          [hidden, scale, out],
        );
        assertClose(await f32(out, expected.length), expected, 1e-5);
        const one = zeros(gpu, hiddenSize);
        await runKernel(
          gpu,
          rmsNorm({ hiddenSize, eps: 1e-6, rows: "samples" }),
          { tokens, samples: 1 },
          [hidden, scale, one, Uint32Array.from([tokens - 1])],
        );
        assertClose(await f32(one, hiddenSize), expected.subarray((tokens - 1) * hiddenSize), 1e-5);
      });
    }

    test("rms-norm-round rounds rows to f16 and leaves a row beyond 65504 as it is", async () => {
      const hiddenSize = 72;
      const hidden = randomValues(3 * hiddenSize, 22);
      for (let i = 40; i < 60; i++) hidden[i] *= 10 ** -((i - 30) / 2); // down to f16's subnormals and below
      const scale = randomValues(hiddenSize, 23).map((v) => v * 1000);
      hidden.fill(0, hiddenSize, 2 * hiddenSize);
      hidden[hiddenSize + 5] = 1;
      scale[5] = 60000;
      const plain = cpu.rmsNorm(hidden, scale, 1e-6);
      const out = zeros(gpu, plain.length);
      const rounded = zeros(gpu, plain.length);
      await runKernel(gpu, rmsNormRound({ hiddenSize, eps: 1e-6 }), { tokens: 3, samples: 0 }, [
        hidden,
        scale,
        out,
        rounded,
      ]);
      const exact = await f32(out, plain.length);
      const actual = await f32(rounded, plain.length);
      assertClose(exact, plain, 1e-5);
      assert.ok(Math.abs(plain[hiddenSize + 5]) > 65504, "the case has a row beyond f16");
      for (let i = 0; i < plain.length; i++) {
        const far = i >= hiddenSize && i < 2 * hiddenSize;
        assert.equal(actual[i], far ? exact[i] : Math.f16round(exact[i]), `[${i}] of ${exact[i]}`);
      }
    });

    for (const [numHeads, numKvHeads, headDim] of [
      [4, 2, 16],
      [6, 2, 32],
      [5, 5, 20],
      [8, 1, 128],
    ] as const) {
      test(`attention ${numHeads}/${numKvHeads}×${headDim}: prefill and decode rows of three sequences in one batch`, async () => {
        const blocksPerSequence = 12;
        const tables = [[3, 7, 1, 30, 29, 28, 27, 26, 25, 24, 23], [0], [9, 8]];
        const rowOf = [0, 1, 1, 1, 2, 0];
        const positions = Uint32Array.from([40, 0, 1, 2, 31, 165]);
        const tokens = rowOf.length;
        const kv = numKvHeads * headDim;
        const values = randomValues(32 * 16 * 2 * kv, 30);
        const q = randomValues(tokens * numHeads * headDim, 31, 2);
        const flat = new Uint32Array(3 * blocksPerSequence);
        tables.forEach((table, i) => flat.set(table, i * blocksPerSequence));
        const slotOf = (token: number, position: number) =>
          tables[rowOf[token]][Math.floor(position / 16)] * 16 + (position % 16);
        const expected = cpu.attention(
          q,
          positions,
          { values, slotOf },
          { numHeads, numKvHeads, headDim },
        );
        const out = zeros(gpu, q.length);
        await runKernel(
          gpu,
          attention({ numHeads, numKvHeads, headDim, blockSize: 16, blocksPerSequence }),
          { tokens, samples: 0 },
          [q, values, positions, Uint32Array.from(rowOf), flat, out],
        );
        assertClose(await f32(out, q.length), expected, 1e-5);
      });
    }

    for (const [tokens, numExperts, topK, norm] of [
      [1, 4, 4, false],
      [5, 12, 4, true],
      [3, 160, 6, false],
    ] as const) {
      test(`gate routes ${tokens} tokens to the top ${topK} of ${numExperts}${norm ? ", renormalised" : ""}`, async () => {
        const hiddenSize = 40;
        const x = randomValues(tokens * hiddenSize, 40);
        const weights = randomValues((numExperts + 1) * hiddenSize, 41);
        if (numExperts === 12) weights.copyWithin(3 * hiddenSize, hiddenSize, 2 * hiddenSize); // experts 1 and 3 tie
        const routing = allocate(gpu, "routing", tokens * topK * 8, STORAGE);
        const shared = zeros(gpu, tokens);
        await runKernel(
          gpu,
          gate({ hiddenSize, numExperts, topK, normTopkProb: norm }),
          { tokens, samples: 0 },
          [x, weights, routing, shared],
        );
        const logits = cpu.linear(x, weights.subarray(0, numExperts * hiddenSize), hiddenSize);
        const expected = cpu.softmaxTopK(logits, numExperts, topK, norm);
        const words = new Uint32Array(await readBuffer(gpu, routing, tokens * topK * 8));
        const ids = words.filter((_, i) => i % 2 === 0);
        const mix = new Float32Array(words.filter((_, i) => i % 2 === 1).buffer);
        assert.deepEqual(ids, expected.ids);
        assertClose(mix, expected.weights, 1e-5);
        const sharedLogits = cpu.linear(x, weights.subarray(numExperts * hiddenSize), hiddenSize);
        assertClose(await f32(shared, tokens), sharedLogits.map(cpu.sigmoid), 1e-5);
      });
    }

    test("add adds", async () => {
      const sums = randomValues(3 * 72, 50);
      const hidden = randomValues(3 * 72, 51);
      const [, result] = await runKernel(gpu, add(72), { tokens: 3, samples: 0 }, [sums, hidden]);
      assert.deepEqual(
        await f32(result, hidden.length),
        hidden.map((v, i) => Math.fround(v + sums[i])),
      );
    });

    test("top-candidates gives the largest logits in order, ties by lower id, log-sum-exp and a wanted logit", async () => {
      const vocabSize = 517;
      const maxCandidates = 64;
      const logits = randomValues(4 * vocabSize, 60, 8);
      for (let i = 0; i < vocabSize; i += 3) logits[vocabSize + i] = 7.5; // ties across lanes
      logits[vocabSize] = 9;
      const wanted = Uint32Array.from([1, NONE, 64, 5, 20, 516, 3, NONE]);
      const out = allocate(gpu, "candidates", 4 * candidateStride(maxCandidates) * 4, STORAGE);
      await runKernel(gpu, topCandidates({ vocabSize, maxCandidates }), { tokens: 0, samples: 4 }, [
        logits,
        wanted,
        out,
      ]);
      const words = new Uint32Array(
        await readBuffer(gpu, out, 4 * candidateStride(maxCandidates) * 4),
      );
      const values = new Float32Array(words.buffer);
      for (let row = 0; row < 4; row++) {
        const of = logits.subarray(row * vocabSize, (row + 1) * vocabSize);
        const at = row * candidateStride(maxCandidates);
        const n = wanted[2 * row];
        const expected = cpu.topIndices(of, n);
        assert.deepEqual([...words.subarray(at, at + n)], expected);
        assert.deepEqual(
          [...values.subarray(at + 64, at + 64 + n)],
          expected.map((id) => of[id]),
        );
        assert.ok(Math.abs(values[at + 128] - cpu.logSumExp(of)) < 1e-4);
        if (wanted[2 * row + 1] !== NONE) assert.equal(values[at + 129], of[wanted[2 * row + 1]]);
      }
    });
  });
}
