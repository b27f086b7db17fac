import assert from "node:assert/strict";
import { test } from "node:test";

import { floorsOf, productOf, WIDTHS, workOf } from "../../../bench/kernels/floors.ts";

test("one row of deepseek-moe-16b reads six experts' gate and up: 69 MB in f16, a quarter and its scales in int4-g32", () => {
  const product = productOf("gate-up", WIDTHS["deepseek-moe-16b"], 1);
  assert.equal(product.matrices, 6);
  const f16 = workOf(product, "f16");
  assert.equal(f16.weightBytes, 6 * 2 * 1408 * 2048 * 2);
  assert.equal(f16.bytes, f16.weightBytes + 4 * (2048 + 6 * 1408));
  assert.equal(f16.operations, 2 * 6 * 2 * 1408 * 2048);
  const int4 = workOf(product, "int4-g32");
  assert.equal(int4.weightBytes, f16.weightBytes / 4 + (6 * 2 * 1408 * 2048 * 2) / 32);
});

test("a batch reads every expert once at the most, and no more experts than the device holds", () => {
  const widths = WIDTHS["qwen3-30b-a3b"];
  assert.equal(productOf("down", widths, 4).matrices, 32);
  assert.equal(productOf("down", widths, 512).matrices, 128);
  const held = productOf("down", widths, 512, 10);
  assert.deepEqual([held.matrices, held.pairs, held.inputRows], [10, 4096, 4096]);
  assert.equal(
    productOf("gate-up", widths, 512).inputRows,
    512,
    "a row of hidden states is read once",
  );
});

test("few rows are bound by memory and many by arithmetic", () => {
  const rates = { bytesPerSecond: 4e12, operationsPerSecond: 700e12 };
  const seconds = (rows: number) =>
    floorsOf(workOf(productOf("lm_head", WIDTHS.mixtral, rows), "f16"), rates);
  const one = seconds(1);
  assert.ok(one.memoryS > 50 * one.computeS);
  const many = seconds(4096);
  assert.ok(many.computeS > many.memoryS);
});

test("the weights of all three projections of qkv count, grouped heads as the fewer that they are", () => {
  const { n, k } = productOf("qkv", WIDTHS["qwen3-30b-a3b"], 1);
  assert.deepEqual([n, k], [(32 + 4 + 4) * 128, 2048]);
});
