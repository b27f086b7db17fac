/** How tokens are drawn where every run must come to the same ones. */

import type { SamplingParams } from "../../router-service/engine/request.ts";

/** Greedy, eight tokens, without end-of-sequence, but for what `options` say. */
export function greedy(options: Partial<SamplingParams> = {}): SamplingParams {
  return {
    maxTokens: 8,
    minTokens: 0,
    temperature: 0,
    topP: 1,
    topK: 0,
    minP: 0,
    repetitionPenalty: 1,
    frequencyPenalty: 0,
    presencePenalty: 0,
    logitBias: new Map(),
    stop: [],
    stopTokenIds: [],
    ignoreEos: false,
    ...options,
  };
}
