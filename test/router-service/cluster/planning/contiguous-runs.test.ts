import assert from "node:assert/strict";
import { describe, it } from "node:test";

import fc from "fast-check";

import { PlacementError } from "../../../../router-service/cluster/errors.ts";
import {
  expertsPerShard,
  planFirstPlacement,
} from "../../../../router-service/cluster/planning/contiguous-runs.ts";

const input = (numExperts: number, memoryBytes: readonly number[], numLayers = 2) => ({
  layers: Array.from({ length: numLayers }, (_, index) => index),
  bytesByExpert: Array.from({ length: numExperts }, () => 100 * numLayers),
  memoryBytes,
});

describe("the first placement", () => {
  it("gives even shares where memory allows", () => {
    assert.deepEqual(expertsPerShard(input(12, [1e6, 1e6])), [6, 6]);
    assert.deepEqual(expertsPerShard(input(32, [1e6, 1e6, 1e6])), [11, 11, 10]);
    assert.deepEqual(expertsPerShard(input(2, [1e6, 1e6, 1e6])), [1, 1, 0]);
  });

  it("gives a small shard what it can hold and the rest to the others", () => {
    assert.deepEqual(expertsPerShard(input(12, [399, 1e6, 1e6])), [1, 6, 5]);
  });

  it("counts experts that take more than others by their own bytes", () => {
    const bytesByExpert = [800, 100, 100, 100, 100, 400];
    const of = (memoryBytes: readonly number[]) => ({ layers: [0], bytesByExpert, memoryBytes });
    assert.deepEqual(expertsPerShard(of([1e6, 1e6])), [3, 3]);
    assert.deepEqual(expertsPerShard(of([900, 1000])), [2, 4]);
    assert.deepEqual(expertsPerShard(of([1200, 400])), [5, 1]);
    assert.throws(() => expertsPerShard(of([1199, 400])), /1600 bytes.*1199 \+ 400 bytes/);
  });

  it("fails with the numbers where memory does not suffice", () => {
    assert.throws(
      () => expertsPerShard(input(12, [1000, 1300])),
      (error) =>
        error instanceof PlacementError &&
        /2400 bytes.*1000 \+ 1300 bytes.*11 experts/.test(error.message),
    );
  });

  it("places each expert exactly once and exceeds no shard's memory, for any shards", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 64 }),
        fc.integer({ min: 1, max: 8 }),
        fc.array(fc.integer({ min: 0, max: 50_000 }), { minLength: 1, maxLength: 6 }),
        (numExperts, numLayers, memoryBytes) => {
          const plan = () => planFirstPlacement(input(numExperts, memoryBytes, numLayers));
          const room = memoryBytes.map((bytes) => Math.floor(bytes / (100 * numLayers)));
          if (room.reduce((sum, one) => sum + Math.min(one, numExperts), 0) < numExperts) {
            assert.throws(plan, PlacementError);
            return;
          }
          const held = plan().flatMap(({ from, to }, shard) => {
            assert.ok(to - from <= room[shard]);
            return Array.from({ length: to - from }, (_, index) => from + index);
          });
          assert.deepEqual(
            held,
            Array.from({ length: numExperts }, (_, index) => index),
          );
        },
      ),
    );
  });
});
