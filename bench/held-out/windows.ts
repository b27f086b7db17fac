/** Perplexity of held-out text as the demo model's eval/reference.json defines it: windows of ids, scored on their own. Pure. */

/** Consecutive windows of `size` ids; a last shorter one is kept where it has at least 2 ids. */
export function cutWindows(ids: readonly number[], size: number): number[][] {
  const windows: number[][] = [];
  for (let start = 0; start < ids.length; start += size) {
    const window = ids.slice(start, start + size);
    if (window.length >= 2) windows.push(window);
  }
  return windows;
}

/** Negative log-likelihood of scored tokens, nats. */
export interface WindowScore {
  readonly nllSum: number;
  readonly scoredTokens: number;
}

/**
 * Score of a window from the log-probabilities of its tokens; the first has none and is context only.
 * Throws where another is missing.
 */
export function scoreLogprobs(logprobs: readonly (number | null)[]): WindowScore {
  let nllSum = 0;
  for (const [i, logprob] of logprobs.slice(1).entries()) {
    if (typeof logprob !== "number" || !Number.isFinite(logprob))
      throw new Error(`token ${i + 1} of ${logprobs.length} has log-probability ${logprob}`);
    nllSum -= logprob;
  }
  return { nllSum, scoredTokens: logprobs.length - 1 };
}

/** exp of the mean negative log-likelihood per scored token. */
export function perplexity(scores: readonly WindowScore[]): number {
  const nllSum = scores.reduce((sum, score) => sum + score.nllSum, 0);
  return Math.exp(nllSum / scores.reduce((sum, score) => sum + score.scoredTokens, 0));
}
