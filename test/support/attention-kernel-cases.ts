/** Attention on the GPU against the plain loops. */

import assert from "node:assert/strict";
import { test } from "node:test";

import * as cpu from "../../core/cpu/attention.ts";
import type { Gpu } from "../../core/gpu/device.ts";
import { attention, type AttentionOptions } from "../../core/gpu/kernels/attention.ts";
import { attentionTiles, type AttentionTile } from "../../core/gpu/kernels/attention-tiles.ts";
import { attentionSplits, fitsSplits } from "../../core/gpu/kernels/attention-splits.ts";
import type { KernelShapes } from "./kernel-suite.ts";
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

const CASES: Readonly<Record<KernelShapes, readonly Shape[]>> = {
  all: [
    { numHeads: 6, numKvHeads: 2, keyDim: 16, window: 7, sinks: false, lanes: 32 },
    { numHeads: 5, numKvHeads: 5, keyDim: 20, sinks: true, lanes: 32 },
    { numHeads: 10, numKvHeads: 1, keyDim: 64, window: 128, sinks: true, lanes: 128 },
    { numHeads: 2, numKvHeads: 2, keyDim: 256, sinks: false, lanes: 32 },
  ],
  few: [{ numHeads: 6, numKvHeads: 2, keyDim: 16, window: 7, sinks: true, lanes: 32 }],
};

/** Heads, rank and turned columns of attention over latent vectors, and lanes. */
type LatentShape = readonly [number, number, number, AttentionOptions["lanes"]];

const LATENT: Readonly<Record<KernelShapes, readonly LatentShape[]>> = {
  all: [
    [4, 32, 16, 32],
    [5, 512, 64, 128],
  ],
  few: [[5, 32, 16, 128]],
};

/** Declares the cases on an open device. */
export function attentionCases(gpu: Gpu, shapes: KernelShapes): void {
  for (const shape of CASES[shapes]) {
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

  for (const [numHeads, rank, ropeDim, lanes] of LATENT[shapes]) {
    test(`attention of ${numHeads} heads over latent vectors ${rank} + ${ropeDim}`, async () => {
      const width = rank + ropeDim;
      const values = randomValues(NUM_SLOTS * width, 33);
      const shape = { numHeads, numKvHeads: 1, keyDim: width, sinks: false, lanes } as const;
      const options = { ...shape, valueDim: rank, slotWidth: width, valuesAt: 0 };
      const { query, results } = await runAttention(gpu, options, values);
      const expected = expectedLatent(query, values, shape, rank);
      for (const result of results) assertClose(result, expected, 1e-5);
      assert.deepEqual(results[0], results[1], "bits do not depend on the tokens of a workgroup");
    });
  }

  tileCases(gpu, shapes);
}

const WIDE = { numHeads: 16, numKvHeads: 2, keyDim: 20, window: 70, sinks: true } as const;
const WIDE_IN_CACHE = { valueDim: 20, slotWidth: 80, valuesAt: 40, lanes: 32 } as const;

/** Shapes of tiles. Every one of them takes some compilers seconds. */
const TILES = {
  all: [WIDE, { numHeads: 3, numKvHeads: 3, keyDim: 64, sinks: false }],
  few: [WIDE],
} as const;

/** Heads, rank and turned columns of tiles over latent vectors. */
const LATENT_TILES = { all: [[35, 512, 64]], few: [] } as const;

/** Attention in tiles, which leaves the first token to others as it stands alone. */
function tileCases(gpu: Gpu, shapes: KernelShapes): void {
  for (const shape of TILES[shapes]) {
    const { numHeads, numKvHeads, keyDim } = shape;
    test(`attention in tiles ${numHeads}/${numKvHeads}×${keyDim}: chunks of prompts of three sequences`, async () => {
      const kv = numKvHeads * keyDim;
      const values = randomValues(NUM_SLOTS * 2 * kv, 34);
      const query = randomValues(TOKENS.length * numHeads * keyDim, 35, 2);
      const terms = randomValues(numHeads, 36, 3);
      const inCache = { valueDim: keyDim, slotWidth: 2 * kv, valuesAt: kv, lanes: 32 } as const;
      const run = (staged: AttentionTile["staged"]) =>
        runTiles(gpu, { ...shape, ...inCache }, staged, query, values, terms);
      const actual = await run(16);
      const sinks = shape.sinks ? terms : undefined;
      const expected = expectedAttention(query, values, {
        ...shape,
        headDim: keyDim,
        scale: 0.3,
        sinks,
      });
      expected.fill(0, 0, numHeads * keyDim);
      assertClose(actual, expected, 1e-5);
      if (keyDim === 64)
        assert.deepEqual(await run(32), actual, "bits do not depend on the columns staged");
    });
  }

  for (const [numHeads, rank, ropeDim] of LATENT_TILES[shapes]) {
    test(`attention in tiles of ${numHeads} heads over latent vectors ${rank} + ${ropeDim}`, async () => {
      const width = rank + ropeDim;
      const shape = { numHeads, numKvHeads: 1, keyDim: width, sinks: false } as const;
      const values = randomValues(NUM_SLOTS * width, 33);
      const query = randomValues(TOKENS.length * numHeads * width, 35, 2);
      const inCache = { valueDim: rank, slotWidth: width, valuesAt: 0, lanes: 32 } as const;
      const actual = await runTiles(gpu, { ...shape, ...inCache }, 16, query, values);
      const expected = expectedLatent(query, values, shape, rank);
      expected.fill(0, 0, numHeads * rank);
      assertClose(actual, expected, 1e-5);
    });
  }

  test("attention in tiles gives a token the same bits wherever its tile begins", async () => {
    const options = { ...WIDE, ...WIDE_IN_CACHE };
    const values = randomValues(NUM_SLOTS * 80, 34);
    const query = randomValues(TOKENS.length * 320, 35, 2);
    const sinks = randomValues(16, 36, 3);
    const all = await runTiles(gpu, options, 16, query, values, sinks);
    for (const first of [1, 4, 8]) {
      const rest = query.subarray(first * 320);
      const some = await runTiles(gpu, options, 16, rest, values, sinks, first);
      assert.deepEqual(some, all.subarray(first * 320), `without the first ${first}`);
    }
  });

  test("attention of tokens that stand alone computes these and no others", async () => {
    const values = randomValues(NUM_SLOTS * 64, 34);
    const query = randomValues(TOKENS.length * 32, 35, 2);
    const shape = { numHeads: 2, numKvHeads: 2, keyDim: 16, sinks: false } as const;
    const inCache = { valueDim: 16, slotWidth: 64, valuesAt: 32, lanes: 32 } as const;
    const kernel = attention({ ...shape, ...inCache, ...PAGES, tokens: "alone" });
    const out = zeros(gpu, query.length);
    await runKernel(gpu, kernel, sizesOf(TOKENS), [...inputsOf(TOKENS, query, values), out]);
    const expected = expectedAttention(query, values, {
      ...shape,
      headDim: 16,
      scale: 0.3,
      sinks: undefined,
    });
    assertClose(await readF32(gpu, out, query.length), expected.fill(0, 32), 1e-5);
  });
}

/** Runs attention in tiles of all tokens from the `first` on. */
async function runTiles(
  gpu: Gpu,
  options: CaseOptions,
  staged: AttentionTile["staged"],
  query: Float32Array,
  values: Float32Array,
  sinks?: Float32Array,
  first = 0,
): Promise<Float32Array> {
  const tokens = TOKENS.slice(first);
  const length = tokens.length * options.numHeads * options.valueDim;
  const out = zeros(gpu, length);
  await runKernel(gpu, attentionTiles({ ...options, ...PAGES }, { staged }), sizesOf(tokens), [
    ...inputsOf(tokens, query, values),
    out,
    ...(options.sinks && sinks ? [sinks] : []),
  ]);
  return readF32(gpu, out, length);
}

const PAGES = { scale: 0.3, blockSize: 16, blocksPerSequence: BLOCKS_PER_SEQUENCE } as const;

type CaseOptions = Omit<AttentionOptions, "scale" | "blockSize" | "blocksPerSequence" | "tokens">;

const sizesOf = (tokens: typeof TOKENS) => ({
  tokens: tokens.length,
  samples: 0,
  topK: 1,
  numSlots: 1,
});

/** Queries, cache, positions, sequence rows and block tables. */
function inputsOf(tokens: typeof TOKENS, query: Float32Array, values: Float32Array) {
  const tables = new Uint32Array(TABLES.length * BLOCKS_PER_SEQUENCE);
  TABLES.forEach((table, i) => tables.set(table, i * BLOCKS_PER_SEQUENCE));
  return [
    query,
    values,
    Uint32Array.from(tokens, ([, position]) => position),
    Uint32Array.from(tokens, ([sequence]) => sequence),
    tables,
  ];
}

/** Runs all kernels: one token per workgroup, several, and without rounds where heads are narrow. */
async function runAttention(
  gpu: Gpu,
  options: CaseOptions,
  values: Float32Array,
  sinks?: Float32Array,
) {
  const { numHeads, keyDim, valueDim } = options;
  const query = randomValues(TOKENS.length * numHeads * keyDim, 31, 2);
  const results: Float32Array[] = [];
  const all = { ...options, ...PAGES };
  const kernels = [
    attention({ ...all, tokens: "one" }),
    attention({ ...all, tokens: "several" }),
    ...(options.lanes === 32 && fitsSplits(options)
      ? [attentionSplits({ ...all, tokens: "one" })]
      : []),
  ];
  for (const kernel of kernels) {
    const out = zeros(gpu, TOKENS.length * numHeads * valueDim);
    await runKernel(gpu, kernel, sizesOf(TOKENS), [
      ...inputsOf(TOKENS, query, values),
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

function expectedLatent(
  query: Float32Array,
  values: Float32Array,
  { numHeads, keyDim: width }: Pick<AttentionOptions, "numHeads" | "keyDim">,
  rank: number,
): Float32Array {
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
  return wide.filter((_, i) => i % width < rank);
}
