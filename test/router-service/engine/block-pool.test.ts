import assert from "node:assert/strict";
import { describe, it } from "node:test";

import fc from "fast-check";

import { BlockPool } from "../../../router-service/engine/block-pool.ts";

/** Token ids of `numBlocks` whole blocks that only `name` has. */
const tokens = (name: number, numBlocks: number) =>
  Array.from({ length: numBlocks * 16 }, (_, i) => name * 1000 + i);

/** Holds blocks for the tokens and registers them all. */
function fill(pool: BlockPool, tokenIds: readonly number[]): number[] {
  const cached = pool.lookup(tokenIds, tokenIds.length / 16);
  pool.reuse(cached);
  const blocks = [...cached, ...pool.allocate(tokenIds.length / 16 - cached.length)];
  for (let i = 0; i < blocks.length; i++) {
    blocks[i] = pool.register(blocks[i], blocks[i - 1], tokenIds, i);
  }
  return blocks;
}

describe("the block pool", () => {
  it("finds the longest cached prefix, whole blocks only", () => {
    const pool = new BlockPool(8);
    const blocks = fill(pool, tokens(1, 3));
    assert.deepEqual(pool.lookup(tokens(1, 3), 3), blocks);
    assert.deepEqual(pool.lookup(tokens(1, 3), 2), blocks.slice(0, 2));
    assert.deepEqual(pool.lookup([...tokens(1, 2), ...tokens(2, 1)], 3), blocks.slice(0, 2));
    assert.deepEqual(pool.lookup(tokens(2, 3), 3), []);
  });

  it("tells equal blocks after different prefixes apart", () => {
    const pool = new BlockPool(8);
    const a = [...tokens(1, 1), ...tokens(9, 1)];
    const b = [...tokens(2, 1), ...tokens(9, 1)];
    const blocksOfA = fill(pool, a);
    const blocksOfB = fill(pool, b);
    assert.notEqual(blocksOfA[1], blocksOfB[1]);
    assert.deepEqual(pool.lookup(b, 2), blocksOfB);
    assert.deepEqual(pool.lookup(tokens(9, 1), 1), []);
  });

  it("forgets the least recently used content first, and of one prefix the end first", () => {
    const pool = new BlockPool(6);
    for (const name of [1, 2, 3]) pool.release(fill(pool, tokens(name, 2)));
    pool.release(fill(pool, tokens(1, 2))); // 1 is used again: 2 is the oldest now
    const lengths = () => [1, 2, 3].map((name) => pool.lookup(tokens(name, 2), 2).length);
    const expected = [
      [2, 1, 2],
      [2, 0, 2],
      [2, 0, 1],
      [2, 0, 0],
      [1, 0, 0],
      [0, 0, 0],
    ];
    for (const cached of expected) {
      pool.allocate(1);
      assert.deepEqual(lengths(), cached);
    }
    assert.equal(pool.canAllocate(1), false);
    assert.throws(() => pool.allocate(1), /1 KV blocks wanted, 0 of 6 are free/);
  });

  it("counts the idle blocks of a hit as taken", () => {
    const pool = new BlockPool(4);
    pool.release(fill(pool, tokens(1, 3)));
    const hit = pool.lookup(tokens(1, 3), 3);
    assert.equal(pool.numFree, 4);
    assert.equal(pool.canAllocate(1, hit), true);
    assert.equal(pool.canAllocate(2, hit), false);
    pool.reuse(hit);
    assert.equal(pool.numFree, 1);
    assert.equal(pool.canAllocate(1, hit), true);
  });

  it("holds one block where two sequences computed the same", () => {
    const pool = new BlockPool(4);
    const [a, b] = [pool.allocate(2), pool.allocate(2)];
    const held = (blocks: number[]) => {
      blocks.forEach((block, i) => {
        blocks[i] = pool.register(block, blocks[i - 1], tokens(1, 2), i);
      });
    };
    held(a);
    held(b);
    assert.deepEqual(b, a);
    assert.equal(pool.numFree, 2);
    pool.release(a);
    assert.equal(pool.numFree, 2, "b holds them");
    pool.release(b);
    assert.equal(pool.numFree, 4);
    assert.throws(() => pool.release(b), /released twice/);
  });

  it("never loses a block, and never hands out one that is held", () => {
    const step = fc.record({
      name: fc.nat(3),
      blocks: fc.integer({ min: 1, max: 4 }),
      drop: fc.nat(5),
    });
    fc.assert(
      fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
        const pool = new BlockPool(10);
        const holders: number[][] = [];
        for (const { name, blocks, drop } of steps) {
          const ids = tokens(name, blocks);
          const hit = pool.lookup(ids, blocks);
          if (pool.canAllocate(blocks - hit.length, hit)) {
            const before = new Set(holders.flat());
            const held = fill(pool, ids);
            assert.equal(new Set(held).size, blocks);
            for (const block of held.slice(hit.length)) assert.ok(!before.has(block));
            holders.push(held);
          }
          pool.release(holders.splice(drop, 1).flat());
          assert.equal(pool.numFree, 10 - new Set(holders.flat()).size);
          for (const held of holders) {
            const content = [0, 1, 2, 3].filter((other) => {
              const found = pool.lookup(tokens(other, held.length), held.length);
              return found.join() === held.join();
            });
            assert.equal(content.length, 1, "what is held stays known, by one content");
          }
        }
      }),
      { numRuns: 100 },
    );
  });
});
