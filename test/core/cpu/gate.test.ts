import assert from "node:assert/strict";
import { test } from "node:test";

import { chooseExperts, type GateOptions } from "../../../core/cpu/gate.ts";

const PLAIN: GateOptions = {
  numExperts: 4,
  topK: 2,
  score: "softmax",
  normTopkProb: false,
  scaling: 1,
};

function choose(logits: readonly number[], options: Partial<GateOptions>, correction?: number[]) {
  const { ids, weights } = chooseExperts(
    Float32Array.from(logits),
    { ...PLAIN, numExperts: logits.length, ...options },
    correction && Float32Array.from(correction),
  );
  return { ids: [...ids], weights: [...weights].map((weight) => Number(weight.toPrecision(6))) };
}

/** The logit whose sigmoid is p. */
const logit = (p: number) => Math.log(p / (1 - p));

test("experts that score alike are chosen by lower id", () => {
  assert.deepEqual(choose([1, 2, 1, 2], { topK: 3 }).ids, [1, 3, 0]);
  // In f32 both sigmoids are 1.
  assert.deepEqual(choose([0, 30, 40, 1], { score: "sigmoid", topK: 2 }, [0, 0, 0, 0]).ids, [1, 2]);
});

test("a softmax over all experts that is divided by its sum is one over the chosen logits", () => {
  const logits = [0.3, -1, 2, 1.5, 0];
  const sum = Math.exp(2) + Math.exp(1.5);
  assert.deepEqual(choose(logits, { normTopkProb: true }), {
    ids: [2, 3],
    weights: [Math.exp(2) / sum, Math.exp(1.5) / sum].map((w) => Number(w.toPrecision(6))),
  });
});

test("a correction moves the choice and leaves the weights", () => {
  const logits = [0.9, 0.8, 0.5, 0.1].map(logit);
  const options = { score: "sigmoid", normTopkProb: true, scaling: 2.5 } as const;
  assert.deepEqual(choose(logits, options, [-0.5, 0, 0, 0]), {
    ids: [1, 2],
    weights: [(2.5 * 0.8) / 1.3, (2.5 * 0.5) / 1.3].map((w) => Number(w.toPrecision(6))),
  });
});

test("a group's rank is its best expert, or its two best together", () => {
  const logits = [0.9, 0.1, 0.6, 0.5].map(logit);
  const groups = { numGroups: 2, topGroups: 1 };
  const highest = choose(logits, { score: "sigmoid", groups: { ...groups, rank: "highest" } });
  assert.deepEqual(highest.ids, [0, 1]);
  const sum = choose(logits, { score: "sigmoid", groups: { ...groups, rank: "sumOfTwo" } });
  assert.deepEqual(sum.ids, [2, 3]);
});

test("no expert of a masked group is chosen, even where all that can be chosen score below zero", () => {
  const logits = [0.9, 0.2, 0.8, 0.7].map(logit);
  const groups = { numGroups: 2, topGroups: 1, rank: "highest" } as const;
  const { ids } = choose(logits, { score: "sigmoid", groups }, [0, -3, 0, 0]);
  assert.deepEqual(ids, [0, 1]);
});

test("groups that rank alike are open by lower index", () => {
  const groups = { numGroups: 3, topGroups: 2, rank: "highest" } as const;
  assert.deepEqual(choose([1, 0, 2, 0, 1, 0.5], { groups, topK: 4 }).ids, [2, 0, 1, 3]);
});

test("weights are multiplied by the scaling", () => {
  const [plain, scaled] = [1, 16].map((scaling) => choose([1, 2, 3, 4], { scaling }).weights);
  assert.deepEqual(
    scaled,
    plain.map((weight) => Number((16 * weight).toPrecision(6))),
  );
});
