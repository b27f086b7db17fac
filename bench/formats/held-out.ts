/** Held-out text through a runner in this process. */

import type { ModelRunner, StepBatch } from "../../router-service/engine/model-runner.ts";
import { BLOCK_SIZE } from "../../router-service/engine/model-runner.ts";
import type { RunnerLimits } from "../../router-service/engine/runner-limits.ts";
import type { WindowScore } from "../held-out/windows.ts";

/** Room for one window at a time. */
export function windowLimits(windowSize: number): RunnerLimits {
  return {
    maxTokens: windowSize,
    maxSequences: 1,
    maxSamples: windowSize,
    maxModelLen: windowSize,
    numBlocks: Math.ceil(windowSize / BLOCK_SIZE),
  };
}

/** A step over a whole window, each token's logits wanted for the next one. */
function windowBatch(window: readonly number[]): StepBatch {
  return {
    tokenIds: Uint32Array.from(window),
    positions: Uint32Array.from(window, (_, position) => position),
    sequenceRows: new Uint32Array(window.length),
    blockTables: [
      Array.from({ length: Math.ceil(window.length / BLOCK_SIZE) }, (_, block) => block),
    ],
    samples: window.slice(1).map((targetTokenId, token) => ({
      token,
      numCandidates: 1,
      fullLogits: false,
      targetTokenId,
    })),
  };
}

/** Negative log-likelihood of a window's tokens after the first. */
export async function scoreWindow(
  runner: ModelRunner,
  window: readonly number[],
): Promise<WindowScore> {
  const signal = AbortSignal.timeout(600_000);
  const { samples } = await runner.forward(windowBatch(window), { signal });
  const nllSum = samples.reduce((sum, row) => sum + row.logSumExp - row.targetLogit, 0);
  if (!Number.isFinite(nllSum)) throw new Error(`a window's log-likelihood is ${-nllSum}`);
  return { nllSum, scoredTokens: samples.length };
}
