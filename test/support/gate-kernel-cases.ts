/** Gates on the GPU against the plain loops. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { sigmoid } from "../../core/cpu/activation.ts";
import { chooseExperts } from "../../core/cpu/gate.ts";
import { allocate, type Gpu, STORAGE } from "../../core/gpu/device.ts";
import { gate, type GateOptions, gateStride } from "../../core/gpu/kernels/gate.ts";
import { assertClose, randomValues, readBuffer, readF32, runKernel, zeros } from "./gpu-fixture.ts";

const PLAIN = {
  score: "softmax",
  bias: false,
  correction: false,
  normTopkProb: false,
  scaling: 1,
} as const;

const CASES: Readonly<Record<string, readonly [number, GateOptions]>> = {
  "a token to all of 4 experts": [1, { ...PLAIN, numExperts: 4, topK: 4 }],
  "5 tokens to the top 4 of 12, renormalised, experts 1 and 3 tie": [
    5,
    { ...PLAIN, numExperts: 12, topK: 4, normTopkProb: true },
  ],
  "3 tokens to the top 6 of 160": [3, { ...PLAIN, numExperts: 160, topK: 6 }],
  "biased logits": [4, { ...PLAIN, numExperts: 32, topK: 4, bias: true, normTopkProb: true }],
  "the best experts of the 2 best of 4 groups, scaled": [
    9,
    {
      ...PLAIN,
      numExperts: 24,
      topK: 6,
      groups: { numGroups: 4, topGroups: 2, rank: "highest" },
      scaling: 16,
    },
  ],
  "sigmoid scores with corrections, groups ranked by their two best, 256 experts": [
    7,
    {
      score: "sigmoid",
      bias: false,
      correction: true,
      numExperts: 256,
      topK: 8,
      groups: { numGroups: 8, topGroups: 4, rank: "sumOfTwo" },
      normTopkProb: true,
      scaling: 2.5,
    },
  ],
  "sigmoid scores of 384 experts, bias and correction": [
    2,
    { ...PLAIN, score: "sigmoid", bias: true, correction: true, numExperts: 384, topK: 8 },
  ],
};

/** Declares the cases on an open device. */
export function gateCases(gpu: Gpu): void {
  for (const [what, [tokens, options]] of Object.entries(CASES)) {
    test(`gate: ${what}`, async () => {
      const { numExperts, topK } = options;
      const stride = gateStride(numExperts);
      const logits = randomValues(tokens * stride, 40, 3);
      if (numExperts === 12) logits[3] = logits[1];
      const [bias, correction] = [randomValues(numExperts, 41), randomValues(numExperts, 42, 0.4)];
      const terms = Float32Array.of(...bias, ...correction);
      const routing = allocate(gpu, "routing", tokens * topK * 8, STORAGE);
      const shared = zeros(gpu, tokens);
      await runKernel(gpu, gate(options), { tokens, samples: 0, topK: 1, numSlots: 1 }, [
        logits,
        routing,
        shared,
        ...(options.bias || options.correction ? [terms] : []),
      ]);
      const part = (from: number, to: number) =>
        Float32Array.from(
          Array.from({ length: tokens }, (_, t) => [
            ...logits.subarray(t * stride + from, t * stride + to),
          ]).flat(),
        );
      const biased = part(0, numExperts).map(
        (logit, i) => logit + (options.bias ? bias[i % numExperts] : 0),
      );
      const expected = chooseExperts(biased, options, options.correction ? correction : undefined);
      const words = new Uint32Array(await readBuffer(gpu, routing, tokens * topK * 8));
      const ids = words.filter((_, i) => i % 2 === 0);
      const mix = new Float32Array(words.filter((_, i) => i % 2 === 1).buffer);
      assert.deepEqual(ids, expected.ids);
      assertClose(mix, expected.weights, 1e-5);
      const sharedGates = part(numExperts, numExperts + 1).map(sigmoid);
      assertClose(await readF32(gpu, shared, tokens), sharedGates, 1e-5);
    });
  }
}
