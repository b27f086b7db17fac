import assert from "node:assert/strict";
import { describe, it } from "node:test";

import fc from "fast-check";

import { packRows, unpackRows } from "../../../../core/wire-rows.ts";
import { NO_EXPERT } from "../../../../core/wire.ts";
import {
  allPairs,
  combine,
  splitByRank,
} from "../../../../router-service/cluster/dispatch/dispatch.ts";

describe("splitting a batch by shard", () => {
  const routing = {
    ids: Uint32Array.of(0, 5, 1, 2, 4, 3),
    weights: Float32Array.of(0.1, 0.2, 0.3, 0.4, 0.5, 0.6),
    topK: 2,
  };
  const rows = packRows(Float32Array.of(1, 2, 3, 4, 5, 6), 2, "f16");
  const pairs = allPairs(routing, 6);
  const ranks = Uint16Array.of(0, 1, 0, 0, 1, 1);

  it("sends each shard only the rows that have an expert there", () => {
    const [first, second, ...others] = splitByRank(rows, routing, pairs, ranks);
    assert.deepEqual(others, []);
    assert.equal(first.rank, 0);
    assert.deepEqual([...first.tokens], [0, 1]);
    assert.deepEqual([...unpackRows(first.rows, 2)], [1, 2, 3, 4]);
    assert.deepEqual([...first.expertIds], [0, NO_EXPERT, 1, 2]);
    assert.deepEqual(first.topkWeights, Float32Array.of(0.1, 0, 0.3, 0.4));
    assert.equal(second.rank, 1);
    assert.deepEqual([...second.pairs], [1, 4, 5]);
    assert.deepEqual([...second.tokens], [0, 2]);
    assert.deepEqual([...unpackRows(second.rows, 2)], [1, 2, 5, 6]);
    assert.deepEqual([...second.expertIds], [NO_EXPERT, 5, 4, 3]);
  });

  it("splits some of the pairs, as after a shard's failure", () => {
    const [only, ...others] = splitByRank(
      rows,
      routing,
      Uint32Array.of(1, 5),
      Uint16Array.of(7, 7),
    );
    assert.deepEqual(others, []);
    assert.deepEqual([...only.tokens], [0, 2]);
    assert.deepEqual([...only.expertIds], [NO_EXPERT, 5, NO_EXPERT, 3]);
    assert.deepEqual(only.topkWeights, Float32Array.of(0, 0.2, 0, 0.6));
  });

  it("does not copy rows for a shard that gets them all", () => {
    const everywhere = splitByRank(rows, routing, pairs, new Uint16Array(6));
    assert.equal(everywhere[0].rows, rows);
  });

  it("refuses an expert that the layer does not have", () => {
    const wrong = { ...routing, ids: Uint32Array.of(0, 5, 1, 2, 4, 6) };
    assert.throws(() => allPairs(wrong, 6), /expert 6.* 6/);
  });

  it("loses and doubles no expert of any row, for any routing and placement", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 20 }),
        fc.integer({ min: 1, max: 4 }),
        fc.array(fc.integer({ min: 0, max: 3 }), { minLength: 4, maxLength: 16 }),
        fc.infiniteStream(fc.nat()),
        fc.constantFrom("f16" as const, "f32" as const, "int8" as const),
        (numTokens, topK, places, random, wire) => {
          const ids = Uint32Array.from(
            { length: numTokens * topK },
            () => random.next().value % places.length,
          );
          const weights = Float32Array.from(ids, (_, i) => i + 1);
          const hidden = Float32Array.from({ length: numTokens }, (_, i) => i);

          const parts = splitByRank(
            packRows(hidden, 1, wire),
            { ids, weights, topK },
            allPairs({ ids, weights, topK }, places.length),
            Uint16Array.from(ids, (id) => places[id]),
          );
          const seen = new Map<number, number>();
          for (const part of parts) {
            const values = unpackRows(part.rows, 1);
            for (const [row, token] of part.tokens.entries()) {
              assert.equal(values[row], token);
              for (let k = 0; k < topK; k++) {
                const id = part.expertIds[row * topK + k];
                if (id === NO_EXPERT) continue;
                const at = token * topK + k;
                assert.equal(ids[at], id);
                assert.equal(places[id], part.rank);
                assert.equal(part.topkWeights[row * topK + k], weights[at]);
                seen.set(at, (seen.get(at) ?? 0) + 1);
              }
            }
          }
          assert.equal(seen.size, ids.length);
          assert.ok([...seen.values()].every((count) => count === 1));
        },
      ),
    );
  });
});

describe("combining partial sums", () => {
  it("adds each row to its token, in the order of the shards", () => {
    const total = combine(3, 2, [
      { tokens: Uint32Array.of(0, 2), sums: Float32Array.of(1, 2, 3, 4) },
      { tokens: Uint32Array.of(2), sums: Float32Array.of(10, 20) },
    ]);
    assert.deepEqual([...total], [1, 2, 0, 0, 13, 24]);
  });
});
