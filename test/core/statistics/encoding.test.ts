import assert from "node:assert/strict";
import { test } from "node:test";

import fc from "fast-check";

import { RoutingCounters, seriesCells } from "../../../core/statistics/counters.ts";
import {
  CELL_BYTES,
  decodeCells,
  decodeSeries,
  decodeQueued,
  encodeGrowth,
  pairRetention,
  parseSeriesName,
  seriesRetention,
} from "../../../core/statistics/encoding.ts";
import { GrowthLedger } from "../../../core/statistics/growth.ts";
import { listsOfCells, type PairKind } from "../../../core/statistics/pairs.ts";
import { arbitraryStep, countNaively, nameCounts, SHAPE } from "./steps.ts";

/** Does to a string what the script in Redis does. */
function addRuns(held: Buffer, runs: Buffer): Buffer {
  let at = 0;
  let sum = held;
  while (at < runs.length) {
    const offset = runs.readUInt32BE(at);
    const count = runs.readUInt32BE(at + 4);
    at += 8;
    const end = offset + count * CELL_BYTES;
    if (sum.length < end) sum = Buffer.concat([sum, Buffer.alloc(end - sum.length)]);
    for (let i = offset; i < end; i += CELL_BYTES, at += CELL_BYTES) {
      sum.writeUIntBE(
        sum.readUIntBE(i, CELL_BYTES) + runs.readUIntBE(at, CELL_BYTES),
        i,
        CELL_BYTES,
      );
    }
  }
  return sum;
}

const arbitraryCells = fc.array(
  fc.oneof({ weight: 3, arbitrary: fc.constant(0) }, fc.integer({ min: 0, max: 2 ** 46 })),
  { minLength: 1, maxLength: 60 },
);

test("growth added to the baseline's string gives the values back", () => {
  fc.assert(
    fc.property(arbitraryCells, arbitraryCells, (before, grown) => {
      const length = Math.max(before.length, grown.length);
      const baseline = Float64Array.from({ length }, (_, i) => before[i] ?? 0);
      const values = baseline.map((value, i) => value + (grown[i] ?? 0));
      const start = encodeGrowth(baseline, new Float64Array(length), 0, length);
      const growth = encodeGrowth(values, baseline, 0, length);
      const string = addRuns(addRuns(Buffer.alloc(0), start.bytes), growth.bytes);
      assert.deepEqual(decodeCells(string, length), values);
    }),
  );
});

test("only what grew travels, gaps of up to four cells apart", () => {
  const values = new Float64Array(100);
  values[10] = 1;
  values[15] = 2;
  values[90] = 3;
  const { bytes, cells } = encodeGrowth(values, new Float64Array(100), 0, 100);
  assert.equal(cells, 7);
  assert.equal(bytes.length, 2 * 8 + 7 * CELL_BYTES);
  assert.equal(encodeGrowth(values, values, 0, 100).bytes.length, 0);
});

test("a ledger's portions add up to the counters, whatever their size", () => {
  const portion = fc.integer({ min: 1, max: 200 });
  fc.assert(
    fc.property(fc.array(arbitraryStep, { maxLength: 4 }), portion, (steps, maxCells) => {
      const counters = new RoutingCounters(SHAPE);
      const ledger = new GrowthLedger(counters, "hash");
      const strings = new Map<string, Buffer>();
      const takeOne = () => {
        const growth = ledger.take(7, maxCells);
        for (const { key, runs } of growth?.parts ?? []) {
          strings.set(key, addRuns(strings.get(key) ?? Buffer.alloc(0), runs));
        }
        return growth !== undefined;
      };
      for (const step of steps) {
        counters.record(step);
        takeOne();
      }
      while (takeOne());
      const prefix = "switchyard:v2:{hash}:b7:";
      const series = [...strings].flatMap(([key, bytes]) => {
        const name = key.slice(prefix.length);
        return parseSeriesName(name) === undefined ? [] : [decodeSeries(name, bytes, SHAPE)];
      });
      const lists = (kind: PairKind, cells: number) =>
        listsOfCells(SHAPE, kind, decodeCells(strings.get(prefix + kind) ?? null, cells), 6);
      const pairs = { together: lists("together", 45), next: lists("next", 72) };
      assert.deepEqual(nameCounts({ series, pairs }), countNaively(steps));
      assert.equal(decodeCells(strings.get(`${prefix}steps`) ?? null, 1)[0], steps.length);
    }),
  );
});

test("a portion ends where it is full, the next one goes on from there", () => {
  const counters = new RoutingCounters({ layers: [0, 1, 2], numExperts: 100, topK: 1 });
  counters.next.cells.fill(1);
  const ledger = new GrowthLedger(counters, "hash");
  const sizes: number[] = [];
  for (let growth; (growth = ledger.take(7, 10_000)) !== undefined;) {
    sizes.push(growth.parts[0].runs.length);
  }
  const stretch = (cells: number) => 8 + cells * CELL_BYTES;
  assert.deepEqual(sizes, [2 * stretch(8192), stretch(20_000 - 2 * 8192)]);
});

test("a string shorter than its cells ends in zeros, a missing one is zeros", () => {
  const cells = seriesCells(SHAPE);
  const series = decodeSeries(
    "math:decode",
    Buffer.from("00000000000900000000000200", "hex"),
    SHAPE,
  );
  assert.equal(series.tokens, 9);
  assert.equal(series.expertTokens[0], 2);
  assert.equal(series.expertTokens.length, (cells - 1) / 2);
  assert.equal(decodeSeries("math:decode", null, SHAPE).tokens, 0);
});

test("names that are no series are told apart", () => {
  assert.deepEqual(parseSeriesName("math:prefill"), { task: "math", phase: "prefill" });
  for (const name of ["together", "math:other", "a:b:decode", ""]) {
    assert.equal(parseSeriesName(name), undefined);
  }
});

const layers = (count: number) => Array.from({ length: count }, (_, i) => i);

test("pairs are kept an hour where they are few, and less where an hour would take over 64 MiB", () => {
  assert.equal(pairRetention({ layers: layers(6), numExperts: 32, topK: 4 }), 3600);
  const middle = pairRetention({ layers: layers(26), numExperts: 64, topK: 6 });
  assert.ok(middle > 60 && middle < 3600, `${middle} s`);
  // Too many for cells: no bucket has any.
  assert.equal(pairRetention({ layers: layers(58), numExperts: 256, topK: 8 }), 3600);
});

test("series are kept an hour where they are few, and less where an hour of all would take over 256 MiB", () => {
  const large = { layers: layers(61), numExperts: 256, topK: 8 };
  assert.equal(seriesRetention({ layers: layers(26), numExperts: 64, topK: 6 }, 30), 3600);
  const some = seriesRetention(large, 8);
  assert.ok(some > 1200 && some < 3600, `${some} s`);
  assert.equal(seriesRetention(large, 130), 120);
});

test("what is queued adds up over writers, of one writer the later counts", () => {
  const fields = [
    "a",
    '{"math:decode":3,"code:prefill":5}',
    "b",
    '{"math:decode":4}',
    "a",
    '{"math:decode":1}',
  ];
  assert.deepEqual(decodeQueued(fields.map((text) => Buffer.from(text))), [
    { task: "math", phase: "decode", tokens: 5 },
  ]);
});
