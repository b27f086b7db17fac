import assert from "node:assert/strict";
import { test } from "node:test";

import { attention, latentAttention } from "../../../core/cpu/attention.ts";
import { linear } from "../../../core/cpu/operations.ts";
import { assertClose, testValues } from "../../../bench/rig/expert-reference.ts";

const HEADS = { numHeads: 4, numKvHeads: 2, headDim: 8, scale: 0.3 };
const KV_WIDTH = 2 * HEADS.numKvHeads * HEADS.headDim;
const inOrder = (_: number, position: number) => position;

test("a window of 3 shows a query its own key and the two before, and nothing else", () => {
  const position = 9;
  const q = testValues(HEADS.numHeads * HEADS.headDim, 1);
  const values = testValues((position + 1) * KV_WIDTH, 2);
  const attend = (seen: Float32Array) =>
    attention(
      q,
      Uint32Array.from([position]),
      { values: seen, slotOf: inOrder },
      { ...HEADS, window: 3 },
    );
  const before = attend(values);
  for (let changed = 0; changed <= position; changed++) {
    const other = values.slice();
    other.fill(1, changed * KV_WIDTH, (changed + 1) * KV_WIDTH);
    if (changed > position - 3) assert.notDeepEqual(attend(other), before, `key ${changed}`);
    else assert.deepEqual(attend(other), before, `key ${changed}`);
  }
});

test("a sink takes its part of the softmax and gives nothing", () => {
  const q = testValues(HEADS.numHeads * HEADS.headDim, 3);
  const values = testValues(KV_WIDTH, 4);
  const sinks = Float32Array.from([-2, 0.5, 1, 3]);
  const cache = { values, slotOf: inOrder };
  const out = attention(q, Uint32Array.from([0]), cache, { ...HEADS, sinks });
  const expected = out.map((_, i) => {
    const head = Math.floor(i / 8);
    const kvHead = Math.floor(head / 2) * 8;
    const score = q
      .subarray(head * 8, head * 8 + 8)
      .reduce((sum, value, d) => sum + 0.3 * value * values[kvHead + d], 0);
    const value = values[2 * 8 + kvHead + (i % 8)];
    return (value * Math.exp(score)) / (Math.exp(score) + Math.exp(sinks[head]));
  });
  assertClose(out, expected, 1e-6);
});

test("latent attention is attention per head over the keys and values that the latent vectors stand for", () => {
  // A value as wide as a key, so that both can lie in one cache.
  const sizes = {
    numHeads: 3,
    kvLoraRank: 10,
    nopeDim: 5,
    ropeDim: 2,
    valueDim: 7,
    scale: 0.4,
  };
  const numSlots = 20;
  const positions = Uint32Array.from([19, 4, 0]);
  const q = testValues(positions.length * 3 * 7, 5);
  const kvUp = testValues(3 * 12 * 10, 6);
  const values = testValues(numSlots * 12, 7);
  const slotOf = (_: number, position: number) => (position * 7 + 3) % numSlots;
  const out = latentAttention(q, positions, { values, slotOf }, kvUp, sizes);

  const expanded = new Float32Array(numSlots * 2 * 3 * 7);
  for (let slot = 0; slot < numSlots; slot++) {
    const latent = values.subarray(slot * 12, slot * 12 + 10);
    const key = values.subarray(slot * 12 + 10, (slot + 1) * 12);
    const both = linear(latent, kvUp, 10);
    for (let head = 0; head < 3; head++) {
      const at = slot * 2 * 21 + head * 7;
      expanded.set(both.subarray(head * 12, head * 12 + 5), at);
      expanded.set(key, at + 5);
      expanded.set(both.subarray(head * 12 + 5, (head + 1) * 12), at + 21);
    }
  }
  const perHead = { numHeads: 3, numKvHeads: 3, headDim: 7, scale: 0.4 };
  const expected = attention(q, positions, { values: expanded, slotOf }, perHead);
  assertClose(out, expected, 1e-6);
});
