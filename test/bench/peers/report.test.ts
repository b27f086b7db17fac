import assert from "node:assert/strict";
import { test } from "node:test";

import { loadsOf } from "../../../bench/peers/loads.ts";
import { aimsTable, ratesTable } from "../../../bench/peers/report.ts";
import { generationOf } from "../../../bench/engine.ts";

const rates = [
  { contender: "Switchyard", load: "decode", perRound: [100, 50, 120] },
  { contender: "Switchyard", load: "prefill", perRound: [800, 400, 900] },
  { contender: "peer", load: "decode", perRound: [50, 20, 80] },
];

test("a ratio is the median of the rounds' ratios, both sides of it beside it", () => {
  const table = ratesTable(rates).split("\n");
  assert.equal(table[0], "| tok/s | Switchyard | peer | ratio |");
  assert.equal(table[2], "| decode | 100 (50–120) | 50.0 (20.0–80.0) | 2.00 |");
  assert.equal(table[3], "| prefill | 800 (400–900) |  | |");
});

test("an aim is reached by its ratio, and left out where a side was not measured", () => {
  const ours = { contender: "Switchyard", load: "decode" };
  const table = aimsTable(rates, [
    { what: "twice", ours, theirs: { contender: "peer", load: "decode" }, atLeast: 2 },
    { what: "own", ours: { ...ours, load: "prefill" }, theirs: ours, atLeast: 9 },
    { what: "absent", ours, theirs: { contender: "other", load: "decode" }, atLeast: 1 },
  ]).split("\n");
  assert.deepEqual(table.slice(2), [
    "| twice | 100 (50–120) | 50.0 (20.0–80.0) | 2.00 | ≥ 2 | yes |",
    "| own | 800 (400–900) | 100 (50–120) | 8.00 | ≥ 9 | no |",
  ]);
});

test("tokens that come before all prompts are computed, or after a stream has ended, are not decoded together", () => {
  const stream = (...times: number[]) => times.map((at, i) => ({ tokenId: i, at }));
  const generation = generationOf([stream(110, 120, 130, 140), stream(125, 135, 145, 155)], 100);
  assert.equal(generation.prefillMs, 25);
  assert.equal(generation.decodedTokens, 3); // at 130, 135, 140
  assert.equal(generation.decodeMs, 15);
  assert.deepEqual(generation.tokenIds, [
    [0, 1, 2, 3],
    [0, 1, 2, 3],
  ]);
  const single = generationOf([stream(150)], 100);
  assert.deepEqual([single.decodedTokens, single.decodeMs], [0, 0]);
});

test("a decode is rated by what came after the first token, a prefill by its prompt", () => {
  const sizes = { promptLen: 128, outputLen: 32, streams: 16, prefills: [512] };
  const [one, together, prefill] = loadsOf(sizes);
  const generation = { tokenIds: [], prefillMs: 256, decodedTokens: 310, decodeMs: 2000 };
  assert.deepEqual([one.streams, together.streams, prefill.outputLen], [1, 16, 1]);
  assert.equal(together.rate(generation), 155);
  assert.equal(prefill.rate(generation), 2000);
  assert.throws(() => one.rate({ ...generation, decodedTokens: 0 }), /nothing was decoded/);
});
