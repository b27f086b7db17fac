import type { GateGroups } from "../../model/config.ts";
import type { Kernel } from "../kernel.ts";
import { ceilDiv, COUNTS, type StepSizes } from "./counts.ts";

export interface GateOptions {
  readonly numExperts: number;
  readonly topK: number;
  /** What router logits become: softmax over all experts, or a sigmoid of each. */
  readonly score: "softmax" | "sigmoid";
  /** Router logits get a bias first. */
  readonly bias: boolean;
  /** Experts are chosen by score + correction, and weighed by score. */
  readonly correction: boolean;
  /** Experts are chosen from the best groups only. */
  readonly groups?: GateGroups;
  /** The top-k weights are divided by their sum. */
  readonly normTopkProb: boolean;
  /** What top-k weights are multiplied by in the end. */
  readonly scaling: number;
}

/** Vendors add this to the sum that top-k weights are divided by. */
const NORM_EPSILON = "1e-20";

/** The number that the chosen experts' scores are divided by. */
const DIVISOR = {
  all: "1.0",
  chosen: `chosen_sum() + ${NORM_EPSILON}`,
} as const;

/** What a logit becomes before anything is added up, and what that is divided by. */
const SCORE = {
  softmax: { of: "exp(logit - highest)", divisor: "total()" },
  sigmoid: { of: "1.0 / (1.0 + exp(-logit))", divisor: "1.0" },
} as const;

/** Rank of a group by what its experts are chosen by. */
const GROUP_RANK = {
  highest: "first",
  sumOfTwo: "first + second",
} as const;

/** Experts of all groups but the best are chosen last. */
function grouping({ numGroups, topGroups, rank }: GateGroups): string {
  return /* wgsl */ `
const GROUPS = ${numGroups}u;
const GROUP_SIZE = E / GROUPS;
var<workgroup> group_ranks: array<f32, GROUPS>;
fn close_groups(lane: u32) {
  for (var g = lane; g < GROUPS; g += LANES) {
    var first = LOWEST;
    var second = LOWEST;
    for (var e = g * GROUP_SIZE; e < (g + 1u) * GROUP_SIZE; e++) {
      let c = choice[e];
      second = max(second, min(first, c));
      first = max(first, c);
    }
    second = select(second, 0.0, GROUP_SIZE == 1u);
    group_ranks[g] = ${GROUP_RANK[rank]};
  }
  workgroupBarrier();
  for (var e = lane; e < E; e += LANES) {
    let g = e / GROUP_SIZE;
    var better = 0u;
    for (var o = 0u; o < GROUPS + counts.zero; o++) {
      better += u32(group_ranks[o] > group_ranks[g] || (group_ranks[o] == group_ranks[g] && o < g));
    }
    if (better >= ${topGroups}u) { choice[e] = LOWEST; }
  }
  workgroupBarrier();
}`;
}

/** Columns of a row of gate logits: the experts', the shared expert's gate, and padding to whole vec4. */
export function gateStride(numExperts: number): number {
  return ceilDiv(numExperts + 1, 4) * 4;
}

/**
 * Experts and their weights from router logits: scores, top-k (ties by lower id), and the shared expert's sigmoid gate.
 *
 * 0 counts; 1 logits f32 [numTokens, gateStride], the shared expert's gate after the experts;
 * 2 routing u32 [numTokens, topK, 2] (expert id, weight bits), in order of choice; 3 shared f32 [numTokens];
 * 4 terms f32 [2, numExperts], bias and correction (bias, correction)
 * A workgroup routes one token. Every lane ranks its experts by counting those before them: no sort.
 */
export function gate(options: GateOptions): Kernel<StepSizes> {
  const { numExperts, topK, bias, correction, groups, scaling } = options;
  const lanes = Math.min(256, Math.max(32, ceilDiv(numExperts, 32) * 32));
  const score = SCORE[options.score];
  // Scores rise with logits: where nothing is added to them, logits choose alike and keep apart what scores round together.
  const byScore = correction || groups?.rank === "sumOfTwo";
  return {
    label: `gate top${topK} of ${numExperts}`,
    workgroupBytes: (2 * numExperts + lanes + 2 * topK + (groups?.numGroups ?? 0)) * 4,
    grid: (sizes) => [sizes.tokens, 1, 1],
    wgsl: /* wgsl */ `
${COUNTS}
const LANES = ${lanes}u;
const STRIDE = ${gateStride(numExperts)}u;
const E = ${numExperts}u;
const TOP_K = ${topK}u;
const LOWEST = -3.4e38;
@group(0) @binding(1) var<storage, read> gate_logits: array<f32>;
@group(0) @binding(2) var<storage, read_write> routing: array<vec2<u32>>;
@group(0) @binding(3) var<storage, read_write> shared_gate: array<f32>;
${bias || correction ? "@group(0) @binding(4) var<storage, read> terms: array<f32>;" : ""}
var<workgroup> choice: array<f32, E>; // logits, then what experts are chosen by
var<workgroup> scores: array<f32, E>;
var<workgroup> parts: array<f32, LANES>;
var<workgroup> chosen: array<f32, TOP_K>;
var<workgroup> chosen_ids: array<u32, TOP_K>;

fn total() -> f32 {
  var sum = 0.0;
  for (var l = 0u; l < LANES + counts.zero; l++) { sum += parts[l]; }
  return sum;
}
fn chosen_sum() -> f32 {
  var sum = 0.0;
  for (var j = 0u; j < TOP_K + counts.zero; j++) { sum += chosen[j]; }
  return sum;
}
${groups === undefined ? "fn close_groups(lane: u32) {}" : grouping(groups)}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let token = group.x;
  if (token >= counts.tokens) { return; }
  for (var e = lane; e < E; e += LANES) {
    choice[e] = gate_logits[token * STRIDE + e]${bias ? " + terms[e]" : ""};
  }
  if (lane == 0u) { shared_gate[token] = 1.0 / (1.0 + exp(-gate_logits[token * STRIDE + E])); }
  workgroupBarrier();
  var highest = choice[0];
  for (var e = 0u; e < E + counts.zero; e++) { highest = max(highest, choice[e]); }
  var part = 0.0;
  for (var e = lane; e < E; e += LANES) {
    let logit = choice[e];
    let score = ${score.of};
    scores[e] = score;
    part += score;
  }
  parts[lane] = part;
  workgroupBarrier();
  let divisor = ${score.divisor};
  for (var e = lane; e < E; e += LANES) {
    scores[e] /= divisor;
    ${byScore ? `choice[e] = scores[e]${correction ? " + terms[E + e]" : ""};` : ""}
  }
  workgroupBarrier();
  close_groups(lane);
  for (var e = lane; e < E; e += LANES) {
    let mine = choice[e];
    var rank = 0u;
    for (var o = 0u; o < E + counts.zero; o++) {
      rank += u32(choice[o] > mine || (choice[o] == mine && o < e));
    }
    if (rank < TOP_K) {
      chosen[rank] = scores[e];
      chosen_ids[rank] = e;
    }
  }
  workgroupBarrier();
  let all = ${DIVISOR[options.normTopkProb ? "chosen" : "all"]};
  for (var j = lane; j < TOP_K; j += LANES) {
    let weight = chosen[j] * f32(${scaling}) / all;
    routing[token * TOP_K + j] = vec2<u32>(chosen_ids[j], bitcast<u32>(weight));
  }
}`,
  };
}
