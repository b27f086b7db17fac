/** Random steps of a small model, and the obvious way to count them. */

import fc from "fast-check";

import type { RoutedStep, RoutingShape } from "../../../core/statistics/routed-step.ts";
import type { PairTables } from "../../../core/statistics/load.ts";
import { NO_PARTNER, PAIR_KINDS } from "../../../core/statistics/pairs.ts";

/** Layers 1, 2 and 5 have experts; 3 and 4 do not. */
export const SHAPE: RoutingShape = { layers: [1, 2, 5], numExperts: 6, topK: 2 };

/** A step of up to 4 sequences. */
export const arbitraryStep: fc.Arbitrary<RoutedStep> = fc
  .array(
    fc.record({
      task: fc.constantFrom("default", "math", "code"),
      phase: fc.constantFrom("prefill" as const, "decode" as const),
      numTokens: fc.integer({ min: 1, max: 5 }),
    }),
    { minLength: 1, maxLength: 4 },
  )
  .chain((sequences) => {
    const numTokens = sequences.reduce((sum, one) => sum + one.numTokens, 0);
    const entries = numTokens * SHAPE.topK;
    const layer = fc.record({
      ids: fc.uint32Array({ minLength: entries, maxLength: entries, max: SHAPE.numExperts - 1 }),
      weights: fc.float32Array({
        minLength: entries,
        maxLength: entries,
        min: 0,
        max: 1,
        noNaN: true,
      }),
      topK: fc.constant(SHAPE.topK),
    });
    return fc.tuple(layer, layer, layer).map((layers) => ({
      sequences,
      numTokens,
      routing: new Map(layers.map((routing, l) => [SHAPE.layers[l], routing])),
    }));
  });

/** Counts by name, one Map entry per thing counted. */
export function countNaively(steps: readonly RoutedStep[]): Map<string, number> {
  const counts = new Map<string, number>();
  const add = (name: string, amount: number) => counts.set(name, (counts.get(name) ?? 0) + amount);
  for (const step of steps) {
    let row = 0;
    for (const { task, phase, numTokens } of step.sequences) {
      for (let t = 0; t < numTokens; t++, row++) {
        add(`${task}:${phase} tokens`, 1);
        SHAPE.layers.forEach((layer, l) => {
          const { ids, weights } = step.routing.get(layer)!;
          const chosen = [...ids.subarray(row * SHAPE.topK, (row + 1) * SHAPE.topK)];
          chosen.forEach((expert, k) => {
            add(`${task}:${phase} l${l}e${expert} tokens`, 1);
            const weight = Math.round(weights[row * SHAPE.topK + k] * 1e6);
            add(`${task}:${phase} l${l}e${expert} weight`, weight);
          });
          chosen.forEach((a, i) => {
            for (const b of chosen.slice(i + 1))
              if (a !== b) add(`together ${l} ${sorted(a, b)}`, 1);
          });
          const next = step.routing.get(SHAPE.layers[l + 1]);
          if (next === undefined) return;
          for (const a of chosen) {
            for (const b of next.ids.subarray(row * SHAPE.topK, (row + 1) * SHAPE.topK)) {
              add(`next ${l} ${a} ${b}`, 1);
            }
          }
        });
      }
    }
  }
  return counts;
}

/** The same names from sums as readers see them. */
export function nameCounts(sum: {
  readonly series: readonly {
    readonly task: string;
    readonly phase: string;
    readonly tokens: number;
    readonly expertTokens: Float64Array;
    readonly weightSums: Float64Array;
  }[];
  readonly pairs: PairTables;
}): Map<string, number> {
  const counts = new Map<string, number>();
  for (const { task, phase, tokens, expertTokens, weightSums } of sum.series) {
    counts.set(`${task}:${phase} tokens`, tokens);
    expertTokens.forEach((count, i) => {
      if (count === 0) return;
      const cell = `l${Math.floor(i / SHAPE.numExperts)}e${i % SHAPE.numExperts}`;
      counts.set(`${task}:${phase} ${cell} tokens`, count);
      counts.set(`${task}:${phase} ${cell} weight`, Math.round(weightSums[i] * 1e6));
    });
  }
  for (const kind of PAIR_KINDS) {
    const { topN, partners, counts: tokens } = sum.pairs[kind];
    partners.forEach((b, i) => {
      if (b === NO_PARTNER) return;
      const layer = Math.floor(i / (SHAPE.numExperts * topN));
      const a = Math.floor(i / topN) % SHAPE.numExperts;
      counts.set(`${kind} ${layer} ${kind === "next" ? `${a} ${b}` : sorted(a, b)}`, tokens[i]);
    });
  }
  return counts;
}

function sorted(a: number, b: number): string {
  return `${Math.min(a, b)} ${Math.max(a, b)}`;
}
