import assert from "node:assert/strict";
import { test } from "node:test";

import fc from "fast-check";

import { samplePieces } from "../../../../core/model/checkpoint/model-hash.ts";

test("samples lie within their tensors and stay below a thousandth, or one piece", () => {
  const sizes = fc.array(fc.oneof(fc.nat(200), fc.nat(5_000_000), fc.nat(3e9)), { maxLength: 60 });
  fc.assert(
    fc.property(sizes, (sizes) => {
      const pieces = samplePieces(sizes);
      for (const { tensor, offset, length } of pieces) {
        assert.ok(Number.isInteger(offset) && offset >= 0 && length > 0 && length <= 64);
        assert.ok(offset + length <= sizes[tensor]);
      }
      const total = sizes.reduce((sum, size) => sum + size, 0);
      const sampled = pieces.reduce((sum, { length }) => sum + length, 0);
      assert.ok(sampled <= Math.min(total / 1024 + 64, 64 * 1024 + 64));
      assert.deepEqual(samplePieces(sizes), pieces);
    }),
  );
});

test("of a model of 30 GB, every kind of tensor is sampled", () => {
  // 24 layers of 60 experts, as in Qwen1.5-MoE-A2.7B: gates and norms are a thousandth of the bytes.
  const experts = Array.from({ length: 24 * 60 * 3 }, () => 2048 * 1408 * 2);
  const others = Array.from({ length: 24 * 13 }, () => 2048 * 2);
  const pieces = samplePieces([...experts, ...others]);
  assert.ok(pieces.some(({ tensor }) => tensor < experts.length));
  assert.ok(pieces.filter(({ tensor }) => tensor >= experts.length).length >= 20);
  assert.ok(new Set(pieces.map(({ tensor }) => tensor)).size > 500);
});
