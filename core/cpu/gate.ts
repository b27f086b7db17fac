/** The gate of an MoE layer in plain loops: from router logits to routing. */

import type { GateConfig, GateGroups } from "../model/config.ts";
import { sigmoid } from "./activation.ts";
import { logSumExp, topIndices } from "./operations.ts";

/** Sizes and options of a gate. */
export interface GateOptions extends Pick<
  GateConfig,
  "score" | "groups" | "normTopkProb" | "scaling"
> {
  readonly numExperts: number;
  readonly topK: number;
}

/** Vendors add this to the sum that top-k weights are divided by. */
const NORM_EPSILON = 1e-20;

/**
 * Chooses experts by router logits [numTokens, numExperts], and by the correction [numExperts] that is added to their
 * scores: ids and weights [numTokens, topK] in order of choice, ties by lower id.
 */
export function chooseExperts(
  logits: Float32Array,
  options: GateOptions,
  correction?: Float32Array,
): { ids: Uint32Array; weights: Float32Array } {
  const { numExperts, topK, groups, normTopkProb, scaling } = options;
  const numTokens = logits.length / numExperts;
  const ids = new Uint32Array(numTokens * topK);
  const weights = new Float32Array(numTokens * topK);
  for (let token = 0; token < numTokens; token++) {
    const of = logits.subarray(token * numExperts, (token + 1) * numExperts);
    const scores = scoresOf(of, options.score);
    // Scores rise with logits: where nothing is added to them, logits choose alike and keep apart what scores round together.
    const bySum = correction !== undefined || groups?.rank === "sumOfTwo";
    const choice = bySum ? scores.map((score, e) => score + (correction?.[e] ?? 0)) : of;
    const open = groups && openGroups(choice, groups);
    const chosen = topIndices(choice, numExperts)
      .filter((expert) => open?.has(groupOf(expert, numExperts, groups)) ?? true)
      .slice(0, topK);
    const sum = chosen.reduce((total, expert) => total + scores[expert], 0);
    const factor = normTopkProb ? scaling / (sum + NORM_EPSILON) : scaling;
    ids.set(chosen, token * topK);
    weights.set(
      chosen.map((expert) => scores[expert] * factor),
      token * topK,
    );
  }
  return { ids, weights };
}

/** Scores [numExperts] in f32, as vendors have them whatever the model's dtype. */
function scoresOf(logits: Float32Array, score: GateConfig["score"]): Float32Array {
  if (score === "sigmoid") return logits.map(sigmoid);
  const all = logSumExp(logits);
  return logits.map((logit) => Math.exp(logit - all));
}

/** The groups whose experts can be chosen. */
function openGroups(choice: Float32Array, { numGroups, topGroups, rank }: GateGroups): Set<number> {
  const size = choice.length / numGroups;
  const ranks = Float32Array.from({ length: numGroups }, (_, group) => {
    const [highest, second] = choice
      .slice(group * size, (group + 1) * size)
      .sort()
      .reverse();
    return rank === "highest" ? highest : highest + (second ?? 0);
  });
  return new Set(topIndices(ranks, topGroups));
}

function groupOf(expert: number, numExperts: number, groups: GateGroups | undefined): number {
  return Math.floor(expert / (numExperts / (groups?.numGroups ?? 1)));
}
