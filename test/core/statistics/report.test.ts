import assert from "node:assert/strict";
import { test } from "node:test";

import type { CountedPhase } from "../../../core/statistics/routed-step.ts";
import { emptyLists, listsOfCells, type PairKind } from "../../../core/statistics/pairs.ts";
import { formatModels, formatReport, reportJson } from "../../../core/statistics/report.ts";

const LAYERS = [0, 2];

function series(task: string, phase: CountedPhase, expertTokens: readonly number[]) {
  const tokens = expertTokens.slice(0, 8).reduce((sum, one) => sum + one, 0) / 2;
  const counts = Float64Array.from(expertTokens);
  return { task, phase, tokens, expertTokens: counts, weightSums: counts.map((n) => n / 2) };
}

/** Pairs with some cells that are not 0, of 2 layers of 8 experts. */
function pairsOf(together: Record<number, number>, next: Record<number, number>) {
  const shape = { layers: LAYERS, numExperts: 8, topK: 2 };
  const lists = (kind: PairKind, cells: number, values: Record<number, number>) =>
    listsOfCells(
      shape,
      kind,
      Float64Array.from({ length: cells }, (_, i) => values[i] ?? 0),
      8,
    );
  return { together: lists("together", 56, together), next: lists("next", 64, next) };
}

const STATISTICS = {
  modelName: "tiny-moe",
  layers: LAYERS,
  numExperts: 8,
  topK: 2,
  series: [
    series("code", "decode", [4, 0, 0, 0, 0, 0, 0, 4, 1, 1, 1, 1, 1, 1, 1, 1]),
    series(
      "math",
      "prefill",
      [1000, 900, 60, 40, 0, 0, 0, 0, 250, 250, 250, 250, 250, 250, 250, 250],
    ),
  ],
  pairs: pairsOf({ 6: 75, 40: 25 }, { 3: 30, 10: 50, 63: 20 }),
};

const SUBJECT = {
  modelHash: "0123456789abcdef0123",
  windowSeconds: 600,
  statistics: STATISTICS,
  width: 100,
};

test("the report is a table of tasks, a bar chart per layer and the strongest pairs", () => {
  assert.equal(
    formatReport(SUBJECT),
    `\
tiny-moe 0123456789ab: 1,004 tokens in the last 10 min
2 MoE layers of 8 experts, 2 per token

task  phase    tokens  share  imbalance  most chosen (share of tokens)
code  decode        4   0.4%       1.50  layer 0 expert 0 100.0%, layer 0 expert 7 100.0%, layer 2 expert 0 25.0%, layer 2 expert 1 25.0%
math  prefill   1,000  99.6%       1.50  layer 0 expert 0 100.0%, layer 0 expert 1 90.0%, layer 2 expert 0 25.0%, layer 2 expert 1 25.0%

layer  imbalance  top share  most chosen experts (share of tokens)
    0       3.00     100.0%  0 100.0%, 1 89.6%, 2 6.0%, 3 4.0%
    2       0.00      25.0%  0 25.0%, 1 25.0%, 2 25.0%, 3 25.0%

load of experts 0 to 7 in each layer, █ its busiest, · never chosen
    0  █▇▁▁···▁
    2  ████████

layer  experts that one token chooses together most, all tasks (share of pairs)
    0  0+7 100.0%
    2  1+7 100.0%

layers  experts that follow one another most, all tasks (share of pairs)
   0→2  1→2 50.0%, 0→3 30.0%, 7→7 20.0%
`,
  );
});

test("with decay the layers show the decayed load, the tasks what was counted", () => {
  const load = Float64Array.from({ length: 16 }, (_, i) => ({ 0: 6, 7: 2 })[i] ?? 0);
  const text = formatReport({ ...SUBJECT, decayed: { halfLifeSeconds: 60, load } });
  assert.match(text, /: 1,004 tokens in the last 10 min\n/);
  assert.match(text, /\nbelow, tokens count half after every 60 s\n/);
  assert.match(text, /\n +0 +5\.00 +150\.0% +0 150\.0%, 7 50\.0%\n +2 +0\.00 +0\.0%\n/);
  assert.match(text, /\n +0 {2}█······▃\n/);
});

test("experts that do not fit the terminal's width go on in the next line", () => {
  const numExperts = 20;
  const load = Float64Array.from({ length: 20 }, (_, i) => (i === 9 ? 16 : i));
  const one = { task: "a", phase: "decode" as const, tokens: 103, expertTokens: load };
  const statistics = {
    modelName: "wide",
    layers: [5],
    numExperts,
    topK: 2,
    series: [{ ...one, weightSums: load }],
    pairs: { together: emptyLists(1, numExperts, 4), next: emptyLists(0, numExperts, 4) },
  };
  const text = formatReport({ ...SUBJECT, statistics, width: 18 });
  assert.ok(text.includes("\n    5  ·▁▂▂▂▃▃▄▄▇\n       ▅▅▅▆▆▇▇▇██\n"), text);
  assert.match(text, /no co-activation counted in this window/);
});

test("JSON has every count by layer", () => {
  const json = JSON.parse(JSON.stringify(reportJson(SUBJECT))) as {
    readonly tokens: number;
    readonly series: readonly {
      readonly task: string;
      readonly layers: readonly {
        readonly layer: number;
        readonly expertTokens: readonly number[];
        readonly weightSums: readonly number[];
      }[];
    }[];
    readonly together: readonly {
      readonly partners: readonly (readonly (readonly [number, number])[])[];
    }[];
    readonly coactivation: readonly {
      readonly layer: number;
      readonly nextLayer: number;
      readonly partners: readonly (readonly (readonly [number, number])[])[];
    }[];
  };
  assert.equal(json.tokens, 1004);
  const [code, math] = json.series;
  assert.deepEqual([code.task, math.task], ["code", "math"]);
  assert.deepEqual(math.layers[0].expertTokens, [1000, 900, 60, 40, 0, 0, 0, 0]);
  assert.deepEqual(code.layers[1].weightSums, Array(8).fill(0.5));
  assert.deepEqual([math.layers[0].layer, math.layers[1].layer], [0, 2]);
  const [pair] = json.coactivation;
  assert.deepEqual([pair.layer, pair.nextLayer], [0, 2]);
  assert.deepEqual(
    [pair.partners[0], pair.partners[1], pair.partners[7]],
    [[[3, 30]], [[2, 50]], [[7, 20]]],
  );
  assert.deepEqual(json.together[0].partners[7], [[0, 75]]);
});

test("several models are listed with the flag that chooses one", () => {
  const shape = { modelName: "tiny-moe", layers: LAYERS, numExperts: 8, topK: 2 };
  const models = [
    { modelHash: "aaaaaaaaaaaaaaaa", shape, lastFlushAt: 995 },
    { modelHash: "bbbb", lastFlushAt: 400 },
  ];
  assert.equal(
    formatModels(models, 1000),
    `\
Several models have statistics here; choose one:
  --model-hash aaaaaaaaaaaa  tiny-moe, last seen 5 s ago
  --model-hash bbbb  (expired), last seen 10 min ago
`,
  );
});
