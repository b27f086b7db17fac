import type { Kernel } from "../kernel.ts";
import { ceilDiv, COUNTS, type StepSizes } from "./counts.ts";
import { candidateStride } from "./top-candidates.ts";

export interface FollowOptions {
  readonly vocabSize: number;
  /** Candidates that a row has room for. */
  readonly maxCandidates: number;
}

const WORKGROUP = 32;

/**
 * tokenIds[t] = the most likely candidate of row tokenIds[t] of the step before, whose results nobody has read yet.
 *
 * 0 counts; 1 candidates u32 [numSamples of the step before, candidateStride]; 2 tokenIds u32 [numTokens]
 */
export function follow(options: FollowOptions): Kernel<StepSizes> {
  return {
    label: "follow",
    grid: (sizes) => [ceilDiv(sizes.tokens, WORKGROUP), 1, 1],
    wgsl: /* wgsl */ `
${COUNTS}
const STRIDE = ${candidateStride(options.maxCandidates)}u;
const LAST_ID = ${options.vocabSize - 1}u;
@group(0) @binding(1) var<storage, read> candidates: array<u32>;
@group(0) @binding(2) var<storage, read_write> token_ids: array<u32>;

@compute @workgroup_size(${WORKGROUP})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  if (id.x >= counts.tokens) { return; }
  // Broken logits have no candidate; the host finds that out, and nobody looks at this step.
  token_ids[id.x] = min(candidates[token_ids[id.x] * STRIDE], LAST_ID);
}`,
  };
}
