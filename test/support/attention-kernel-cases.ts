/** Attention on the GPU against the plain loops. */

import assert from "node:assert/strict";
import { test } from "node:test";

import * as cpu from "../../core/cpu/attention.ts";
import type { Gpu } from "../../core/gpu/device.ts";
import { attention, type AttentionOptions } from "../../core/gpu/kernels/attention.ts";
import { attentionSplits, fitsSplits } from "../../core/gpu/kernels/attention-splits.ts";
import { assertClose, randomValues, readF32, runKernel, zeros } from "./gpu-fixture.ts";

const BLOCKS_PER_SEQUENCE = 12;
const TABLES = [[3, 7, 1, 30, 29, 28, 27, 26, 25, 24, 23], [0], [9, 8]];
const NUM_SLOTS = 32 * 16;
/** Sequence and position of each token: chunks of prompts, and single tokens of other sequences. */
const TOKENS: readonly (readonly [number, number])[] = [
  [0, 40],
  [1, 0],
  [1, 1],
  [1, 2],
  [2, 30],
  [2, 31],
  ...Array.from({ length: 9 }, (_, i) => [0, 157 + i] as const),
];

type Shape = Pick<
  AttentionOptions,
  "numHeads" | "numKvHeads" | "keyDim" | "window" | "sinks" | "lanes"
>;

const CASES: readonly Shape[] = [
  { numHeads: 6, numKvHeads: 2, keyDim: 16, window: 7, sinks: false, lanes: 32 },
  { numHeads: 5, numKvHeads: 5, keyDim: 20, sinks: true, lanes: 32 },
  { numHeads: 10, numKvHeads: 1, keyDim: 64, window: 128, sinks: true, lanes: 128 },
  { numHeads: 2, numKvHeads: 2, keyDim: 256, sinks: false, lanes: 32 },
];

/** Declares the cases on an open device. */
export function attentionCases(gpu: Gpu): void {
  for (const shape of CASES) {
    const { numHeads, numKvHeads, keyDim, window, sinks } = shape;
    const extras = `${window === undefined ? "" : `, window ${window}`}${sinks ? ", sinks" : ""}`;
    test(`attention ${numHeads}/${numKvHeads}×${keyDim}${extras}: prompts and decodes of three sequences in one batch`, async () => {
      const kv = numKvHeads * keyDim;
      const values = randomValues(NUM_SLOTS * 2 * kv, 30);
      const terms = randomValues(numHeads, 32, 3);
      const options = { ...shape, valueDim: keyDim, slotWidth: 2 * kv, valuesAt: kv };
      const { query, results } = await runAttention(gpu, options, values, terms);
      const expected = expectedAttention(query, values, {
        ...shape,
        headDim: keyDim,
        scale: 0.3,
        sinks: sinks ? terms : undefined,
      });
      for (const result of results) assertClose(result, expected, 1e-5);
      assert.deepEqual(results[0], results[1], "bits do not depend on the tokens of a workgroup");
    });
  }

  for (const [numHeads, rank, ropeDim, lanes] of [
    [4, 32, 16, 32],
    [5, 512, 64, 128],
  ] as const) {
    test(`attention of ${numHeads} heads over latent vectors ${rank} + ${ropeDim}`, async () => {
      const width = rank + ropeDim;
      const values = randomValues(NUM_SLOTS * width, 33);
      const shape = { numHeads, numKvHeads: 1, keyDim: width, sinks: false, lanes } as const;
      const { query, results } = await runAttention(
        gpu,
        { ...shape, valueDim: rank, slotWidth: width, valuesAt: 0 },
        values,
      );
      // For the plain loops every slot holds the vector twice, as key and as value.
      const doubled = new Float32Array(values.length * 2);
      for (let slot = 0; slot < NUM_SLOTS; slot++) {
        const vector = values.subarray(slot * width, (slot + 1) * width);
        doubled.set(vector, 2 * slot * width);
        doubled.set(vector, (2 * slot + 1) * width);
      }
      const wide = expectedAttention(query, doubled, {
        numHeads,
        numKvHeads: 1,
        headDim: width,
        scale: 0.3,
      });
      const expected = wide.filter((_, i) => i % width < rank);
      for (const result of results) assertClose(result, expected, 1e-5);
      assert.deepEqual(results[0], results[1], "bits do not depend on the tokens of a workgroup");
    });
  }
}

/** Runs all kernels: one token per workgroup, several, and without rounds where heads are narrow. */
async function runAttention(
  gpu: Gpu,
  options: Omit<AttentionOptions, "scale" | "blockSize" | "blocksPerSequence" | "tokens">,
  values: Float32Array,
  sinks?: Float32Array,
) {
  const { numHeads, keyDim, valueDim } = options;
  const query = randomValues(TOKENS.length * numHeads * keyDim, 31, 2);
  const tables = new Uint32Array(TABLES.length * BLOCKS_PER_SEQUENCE);
  TABLES.forEach((table, i) => tables.set(table, i * BLOCKS_PER_SEQUENCE));
  const results: Float32Array[] = [];
  const all = { ...options, scale: 0.3, blockSize: 16, blocksPerSequence: BLOCKS_PER_SEQUENCE };
  const kernels = [
    attention({ ...all, tokens: "one" }),
    attention({ ...all, tokens: "several" }),
    ...(options.lanes === 32 && fitsSplits(options)
      ? [attentionSplits({ ...all, tokens: "one" })]
      : []),
  ];
  for (const kernel of kernels) {
    const out = zeros(gpu, TOKENS.length * numHeads * valueDim);
    await runKernel(gpu, kernel, { tokens: TOKENS.length, samples: 0, topK: 1, numSlots: 1 }, [
      query,
      values,
      Uint32Array.from(TOKENS, ([, position]) => position),
      Uint32Array.from(TOKENS, ([sequence]) => sequence),
      tables,
      out,
      ...(options.sinks && sinks ? [sinks] : []),
    ]);
    results.push(await readF32(gpu, out, TOKENS.length * numHeads * valueDim));
  }
  return { query, results };
}

function expectedAttention(
  query: Float32Array,
  values: Float32Array,
  options: cpu.HeadsOptions,
): Float32Array {
  const slotOf = (token: number, position: number) =>
    TABLES[TOKENS[token][0]][Math.floor(position / 16)] * 16 + (position % 16);
  const positions = Uint32Array.from(TOKENS, ([, position]) => position);
  return cpu.attention(query, positions, { values, slotOf }, options);
}
