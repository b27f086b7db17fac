/** The kernels that work on rows, against the plain loops. */

import assert from "node:assert/strict";
import { test } from "node:test";

import * as cpu from "../../core/cpu/operations.ts";
import { allocate, type Gpu, STORAGE } from "../../core/gpu/device.ts";
import { add } from "../../core/gpu/kernels/add.ts";
import { addNorm } from "../../core/gpu/kernels/add-norm.ts";
import { rmsNorm } from "../../core/gpu/kernels/rms-norm.ts";
import { packInt8Rows } from "../../core/int8-rows.ts";
import { rmsNormRound } from "../../core/gpu/kernels/rms-norm-round.ts";
import { candidateStride, topCandidates } from "../../core/gpu/kernels/top-candidates.ts";
import { attentionCases } from "./attention-kernel-cases.ts";
import { gateCases } from "./gate-kernel-cases.ts";
import type { KernelShapes } from "./kernel-suite.ts";
import { positionCases } from "./position-kernel-cases.ts";
import { assertClose, randomValues, readBuffer, readF32, runKernel, zeros } from "./gpu-fixture.ts";

const NONE = 0xffffffff;
const UNROUTED = { topK: 1, numSlots: 1 };

/** Declares the cases on an open device. */
export function rowKernelCases(gpu: Gpu, shapes: KernelShapes): void {
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
        { tokens, samples: 0, ...UNROUTED },
        [hidden, scale, out],
      );
      assertClose(await readF32(gpu, out, expected.length), expected, 1e-5);
      const one = zeros(gpu, hiddenSize);
      await runKernel(
        gpu,
        rmsNorm({ hiddenSize, eps: 1e-6, rows: "samples" }),
        { tokens, samples: 1, ...UNROUTED },
        [hidden, scale, one, Uint32Array.from([tokens - 1])],
      );
      assertClose(
        await readF32(gpu, one, hiddenSize),
        expected.subarray((tokens - 1) * hiddenSize),
        1e-5,
      );
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
    await runKernel(
      gpu,
      rmsNormRound({ hiddenSize, eps: 1e-6, wire: "f16" }),
      { tokens: 3, samples: 0, ...UNROUTED },
      [hidden, scale, out, rounded],
    );
    const exact = await readF32(gpu, out, plain.length);
    const actual = await readF32(gpu, rounded, plain.length);
    assertClose(exact, plain, 1e-5);
    assert.ok(Math.abs(plain[hiddenSize + 5]) > 65504, "the case has a row beyond f16");
    for (let i = 0; i < plain.length; i++) {
      const far = i >= hiddenSize && i < 2 * hiddenSize;
      assert.equal(actual[i], far ? exact[i] : Math.f16round(exact[i]), `[${i}] of ${exact[i]}`);
    }
  });

  test("rms-norm-round rounds rows to int8 with a scale, and keeps zeros", async () => {
    const hiddenSize = 72;
    const hidden = randomValues(4 * hiddenSize, 22);
    const scale = randomValues(hiddenSize, 23);
    hidden.fill(0, hiddenSize, 2 * hiddenSize);
    hidden[2 * hiddenSize + 5] = 1e20; // its square is infinite, so that the row becomes zeros
    const out = zeros(gpu, hidden.length);
    const rounded = zeros(gpu, hidden.length);
    await runKernel(
      gpu,
      rmsNormRound({ hiddenSize, eps: 1e-6, wire: "int8" }),
      { tokens: 4, samples: 0, ...UNROUTED },
      [hidden, scale, out, rounded],
    );
    const exact = await readF32(gpu, out, hidden.length);
    const actual = await readF32(gpu, rounded, hidden.length);
    const packed = packInt8Rows(actual, hiddenSize);
    assert.ok(packed !== undefined, "every value is a whole number of its row's steps");
    assert.deepEqual(
      [...packed.scales].map((step) => step > 0),
      [true, false, false, true],
    );
    for (let i = 0; i < actual.length; i++) {
      const step = packed.scales[Math.floor(i / hiddenSize)];
      assert.ok(Math.abs(actual[i] - exact[i]) <= step * 0.5001, `[${i}] of ${exact[i]}`);
    }
    assert.equal(Math.max(...packed.values.subarray(0, hiddenSize).map(Math.abs)), 127);
  });

  attentionCases(gpu, shapes);
  positionCases(gpu);

  gateCases(gpu);

  test("add adds", async () => {
    const sums = randomValues(3 * 72, 50);
    const hidden = randomValues(3 * 72, 51);
    const [, result] = await runKernel(gpu, add(72), { tokens: 3, samples: 0, ...UNROUTED }, [
      sums,
      hidden,
    ]);
    assert.deepEqual(
      await readF32(gpu, result, hidden.length),
      hidden.map((v, i) => Math.fround(v + sums[i])),
    );
  });

  test("add-norm adds and norms", async () => {
    const [hiddenSize, factor] = [264, 0.25];
    const sums = randomValues(3 * hiddenSize, 52);
    const hidden = randomValues(3 * hiddenSize, 53);
    const scale = randomValues(hiddenSize, 54);
    const out = zeros(gpu, hidden.length);
    const [, result] = await runKernel(
      gpu,
      addNorm({ hiddenSize, eps: 1e-6, factor }),
      { tokens: 3, samples: 0, ...UNROUTED },
      [sums, hidden, scale, out],
    );
    const added = hidden.map((v, i) => Math.fround(v + factor * sums[i]));
    assert.deepEqual(await readF32(gpu, result, added.length), added);
    const normed = cpu.rmsNorm(added, scale, 1e-6);
    assertClose(await readF32(gpu, out, normed.length), normed, 1e-5);
  });

  test("top-candidates gives the largest logits in order, ties by lower id, log-sum-exp and a wanted logit", async () => {
    const vocabSize = 517;
    const maxCandidates = 64;
    const logits = randomValues(4 * vocabSize, 60, 8);
    for (let i = 0; i < vocabSize; i += 3) logits[vocabSize + i] = 7.5; // ties across lanes
    logits[vocabSize] = 9;
    const wanted = Uint32Array.from([1, NONE, 64, 5, 20, 516, 3, NONE]);
    const out = allocate(gpu, "candidates", 4 * candidateStride(maxCandidates) * 4, STORAGE);
    await runKernel(
      gpu,
      topCandidates({ vocabSize, rowStride: vocabSize, maxCandidates }),
      { tokens: 0, samples: 4, ...UNROUTED },
      [logits, wanted, out],
    );
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
}
