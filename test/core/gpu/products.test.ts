import assert from "node:assert/strict";
import { test } from "node:test";

import { fastProducts, isPlain, plainProducts, productKernel } from "../../../core/gpu/products.ts";
import { bindByRows } from "../../../core/gpu/sliced-linear.ts";

const LIMITS = {
  offers: { subgroups: true },
  workgroupBytes: 32768,
  workgroupThreads: 256,
  maxWorkgroups: 65535,
};

test("few rows take matrix-vector kernels, many take tiles, on an adapter of any size", () => {
  for (const limits of [
    LIMITS,
    { ...LIMITS, offers: { subgroups: false }, workgroupBytes: 16384, workgroupThreads: 128 },
  ]) {
    const ranges = fastProducts(limits)({ k: 2048, n: 2048 });
    assert.equal(isPlain(ranges), false);
    assert.equal(ranges[0].from, 1);
    assert.deepEqual(
      ranges.toSorted((a, b) => a.from - b.from),
      ranges,
    );
    for (const { from, candidate } of ranges) {
      assert.equal(candidate.kind, from < 24 ? "matvec" : "gemm", `from ${from} rows`);
    }
    assert.ok(ranges.some(({ from }) => from >= 24));
  }
  assert.equal(isPlain(plainProducts({ k: 2048, n: 2048 })), true);
});

test("a vocabulary of 300 000 fits a grid, and a gate of 65 rows takes a workgroup for each", () => {
  const choice = fastProducts(LIMITS);
  const workgroups = (n: number) =>
    choice({ k: 2048, n }).map(({ candidate }) =>
      candidate.kind === "matvec" ? Math.ceil(n / candidate.shape.columns) : 0,
    );
  assert.ok(Math.max(...workgroups(300_000)) <= LIMITS.maxWorkgroups);
  assert.equal(workgroups(65)[0], 65);
});

test("no kernel needs more workgroup memory than the least that adapters have", () => {
  const least = { ...LIMITS, offers: { subgroups: false }, workgroupBytes: 16384 };
  for (const [k, n] of [
    [128, 512],
    [7168, 24576],
    [7168, 300_000],
  ]) {
    const product = { k, n, weights: "f16", epilogue: "store" } as const;
    for (const { candidate } of fastProducts(least)(product)) {
      const { label, workgroupBytes = 0 } = productKernel(candidate, product, "tokens");
      assert.ok(workgroupBytes <= least.workgroupBytes, `${label}: ${workgroupBytes} bytes`);
    }
  }
});

test("the kernel runs in whose range the number of rows lies", () => {
  const ran: number[] = [];
  const kernels = [1, 2, 24].map((from) => ({
    from,
    kernel: { bind: () => ({ encode: () => ran.push(from) }) },
  }));
  const bound = bindByRows(kernels, (kernel) => kernel.bind());
  for (const tokens of [1, 2, 23, 24, 900]) {
    bound.encode({} as GPUComputePassEncoder, { tokens, samples: 1, topK: 1, numSlots: 1 });
  }
  assert.deepEqual(ran, [1, 2, 2, 24, 24]);
});
