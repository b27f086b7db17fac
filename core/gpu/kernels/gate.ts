import type { Kernel } from "../kernel.ts";
import { ceilDiv, COUNTS, type StepSizes } from "./counts.ts";

export interface GateOptions {
  readonly numExperts: number;
  readonly topK: number;
  /** The top-k weights are divided by their sum. */
  readonly normTopkProb: boolean;
}

const LANES = 32;

/** The number that the chosen experts' probabilities are divided by. */
const DIVISOR = {
  all: "1.0",
  chosen: "chosen_sum()",
} as const;

/** Columns of a row of gate logits: the experts', the shared expert's gate, and padding to whole vec4. */
export function gateStride(numExperts: number): number {
  return ceilDiv(numExperts + 1, 4) * 4;
}

/**
 * Softmax over all experts' router logits, top-k by probability (ties by lower id), and the shared expert's sigmoid gate.
 *
 * 0 counts; 1 logits f32 [numTokens, gateStride], the shared expert's gate after the experts;
 * 2 routing u32 [numTokens, topK, 2] (expert id, weight bits), most likely first; 3 shared f32 [numTokens]
 * A workgroup routes one token. Every lane ranks its experts by counting those before them: one barrier, no sort.
 */
export function gate(options: GateOptions): Kernel<StepSizes> {
  const { numExperts, topK, normTopkProb } = options;
  return {
    label: `gate top${topK} of ${numExperts}`,
    workgroupBytes: (numExperts + topK) * 4,
    grid: (sizes) => [sizes.tokens, 1, 1],
    wgsl: /* wgsl */ `
${COUNTS}
const LANES = ${LANES}u;
const STRIDE = ${gateStride(numExperts)}u;
const E = ${numExperts}u;
const TOP_K = ${topK}u;
@group(0) @binding(1) var<storage, read> gate_logits: array<f32>;
@group(0) @binding(2) var<storage, read_write> routing: array<vec2<u32>>;
@group(0) @binding(3) var<storage, read_write> shared_gate: array<f32>;
var<workgroup> logits: array<f32, E>;
var<workgroup> chosen: array<f32, TOP_K>;

fn chosen_sum() -> f32 {
  var sum = 0.0;
  for (var j = 0u; j < TOP_K; j++) { sum += chosen[j]; }
  return sum;
}

fn rank_of(e: u32) -> u32 {
  var rank = 0u;
  for (var o = 0u; o < E + counts.zero; o++) {
    rank += select(0u, 1u, logits[o] > logits[e] || (logits[o] == logits[e] && o < e));
  }
  return rank;
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let token = group.x;
  if (token >= counts.tokens) { return; }
  for (var e = lane; e < E; e += LANES) { logits[e] = gate_logits[token * STRIDE + e]; }
  if (lane == 0u) { shared_gate[token] = 1.0 / (1.0 + exp(-gate_logits[token * STRIDE + E])); }
  workgroupBarrier();
  var top = logits[0];
  for (var e = 0u; e < E + counts.zero; e++) { top = max(top, logits[e]); }
  var all = 0.0;
  for (var e = 0u; e < E + counts.zero; e++) { all += exp(logits[e] - top); }
  for (var e = lane; e < E; e += LANES) {
    let rank = rank_of(e);
    if (rank < TOP_K) { chosen[rank] = exp(logits[e] - top) / all; }
  }
  workgroupBarrier();
  let divisor = ${DIVISOR[normTopkProb ? "chosen" : "all"]};
  for (var e = lane; e < E; e += LANES) {
    let rank = rank_of(e);
    if (rank < TOP_K) {
      routing[token * TOP_K + rank] = vec2<u32>(e, bitcast<u32>(chosen[rank] / divisor));
    }
  }
}`,
  };
}
