/** Ways to tell the next window's load from the windows before it. Pure. */

import type { LoadProfiles, Profile, QueuedTokens } from "./windows.ts";

/**
 * Predictors of the next window: the tasks' own loads in the mix that is queued; the same with the tasks' recent loads;
 * all tokens so far; a slow mean; a fast mean; the fast mean moved on in the direction from the slow one; the last window.
 */
export const PREDICTORS = [
  "mix",
  "recent-mix",
  "long-average",
  "slow",
  "recent",
  "trend",
  "last-window",
] as const;

/** One of the PREDICTORS. */
export type Predictor = (typeof PREDICTORS)[number];

/** How far `trend` moves on: this part of the way that the fast mean is ahead of the slow one. */
const TREND = 0.5;

/** Tokens of a task that weigh as much as what is known of all tasks. */
const PRIOR_TOKENS = 64;

/** What is to be predicted. */
export interface Ahead {
  /** What waits or runs now. */
  readonly queued: readonly QueuedTokens[];
  /** Seconds that are ahead. */
  readonly seconds: number;
  readonly numExperts: number;
}

/** Tokens of an expert per token in what is ahead [numMoeLayers, numExperts]; a layer sums to topK. */
export function predict(name: Predictor, profiles: LoadProfiles, ahead: Ahead): Float64Array {
  const { total, long, last } = profiles;
  switch (name) {
    case "mix":
      return mixed(profiles, ahead, "slow");
    case "recent-mix":
      return mixed(profiles, ahead, "fast");
    case "long-average":
      return long.share;
    case "slow":
      return total.slow.share;
    case "recent":
      return total.fast.share;
    case "trend":
      return extrapolated(total.slow.share, total.fast.share, ahead.numExperts);
    case "last-window":
      return last.share;
  }
}

/** Each series' share of the next window's tokens: what is queued, and where that is less than a window, as of late. */
function weights(
  { series, total, tokensPerSecond }: LoadProfiles,
  { queued, seconds }: Ahead,
): Map<string, number> {
  const sums = new Map<string, number>();
  const add = (name: string, amount: number) => sums.set(name, (sums.get(name) ?? 0) + amount);
  let waiting = 0;
  for (const { task, phase, tokens } of queued) {
    add(`${task}:${phase}`, tokens);
    waiting += tokens;
  }
  const rest = Math.max(0, tokensPerSecond * seconds - waiting);
  if (total.fast.tokens > 0) {
    for (const { task, phase, fast } of series) {
      add(`${task}:${phase}`, (rest * fast.tokens) / total.fast.tokens);
    }
  }
  return sums;
}

function mixed(profiles: LoadProfiles, ahead: Ahead, pace: "fast" | "slow"): Float64Array {
  const { series, long } = profiles;
  const known = new Map(series.map((one) => [`${one.task}:${one.phase}`, one[pace]]));
  const sum = new Float64Array(long.share.length);
  let whole = 0;
  for (const [name, weight] of weights(profiles, ahead)) {
    if (weight === 0) continue;
    whole += weight;
    const own: Profile | undefined = known.get(name);
    const trust = own === undefined ? 0 : own.tokens / (own.tokens + PRIOR_TOKENS);
    for (let i = 0; i < sum.length; i++) {
      const general = long.share[i];
      sum[i] += weight * (general + trust * ((own?.share[i] ?? general) - general));
    }
  }
  return whole === 0 ? profiles.total[pace].share : sum.map((one) => one / whole);
}

/** Below 0 is 0; the layer's other experts give what that adds. */
function extrapolated(slow: Float64Array, fast: Float64Array, numExperts: number): Float64Array {
  const ahead = fast.map((share, i) => Math.max(0, share + TREND * (share - slow[i])));
  for (let from = 0; from < ahead.length; from += numExperts) {
    let before = 0;
    let after = 0;
    for (let i = from; i < from + numExperts; i++) {
      before += fast[i];
      after += ahead[i];
    }
    if (after > 0) for (let i = from; i < from + numExperts; i++) ahead[i] *= before / after;
  }
  return ahead;
}
