/** Load over time: fast and slow exponential windows per task and phase, folded from counters. Pure. */

import type { CountedPhase } from "./routed-step.ts";

/** Tokens of one task and phase that wait or run. */
export interface QueuedTokens {
  readonly task: string;
  readonly phase: CountedPhase;
  readonly tokens: number;
}

/** Counts of one task and phase in a window. */
export interface SeriesTokens {
  readonly task: string;
  readonly phase: CountedPhase;
  readonly tokens: number;
  /** Tokens [numMoeLayers, numExperts]. */
  readonly expertTokens: Float64Array;
}

/** What all routers counted in some seconds. */
export interface CountedWindow {
  readonly seconds: number;
  /** Steps of all routers; 0 where nobody counted them. */
  readonly steps: number;
  /** One entry per task and phase. */
  readonly series: readonly SeriesTokens[];
}

/** A mean over tokens in which older ones count less. */
export interface Profile {
  /** Tokens in it, older ones in part. */
  readonly tokens: number;
  /** Tokens of an expert per token [numMoeLayers, numExperts]; each layer sums to topK, or to 0 without tokens. */
  readonly share: Float64Array;
}

/** Fast and slow means of the same tokens. */
export interface Profiles {
  readonly fast: Profile;
  readonly slow: Profile;
}

/** Profiles of one task and phase. */
export interface SeriesProfiles extends Profiles {
  readonly task: string;
  readonly phase: CountedPhase;
}

/** Windows folded into profiles: bounded by MAX_SERIES, however long it grows. */
export interface LoadProfiles {
  /** At most MAX_SERIES. */
  readonly series: readonly SeriesProfiles[];
  /** All tasks and phases together. */
  readonly total: Profiles;
  /** All tokens since the first window, each in full. */
  readonly long: Profile;
  /** The last window that had tokens. */
  readonly last: Profile;
  /** Tokens per second, in the fast mean. */
  readonly tokensPerSecond: number;
  /** Tokens and steps of the windows whose steps were counted, older ones in part; as those of the fast mean. */
  readonly stepped: { readonly tokens: number; readonly steps: number };
}

/** Seconds after which a token counts half in the fast windows. */
const FAST_HALF_LIFE_SECONDS = 20;

/** Seconds after which a token counts half in the slow windows. */
export const SLOW_HALF_LIFE_SECONDS = 600;

/** Tasks and phases that are kept apart: those of one router, and as many of others. Those with fewest tokens go first. */
export const MAX_SERIES = 260;

/** Profiles of `cells` = numMoeLayers · numExperts before any window. */
export function emptyProfiles(cells: number): LoadProfiles {
  const none: Profile = { tokens: 0, share: new Float64Array(cells) };
  return {
    series: [],
    total: { fast: none, slow: none },
    long: none,
    last: none,
    tokensPerSecond: 0,
    stepped: { tokens: 0, steps: 0 },
  };
}

/** Profiles after one window more. What it does not change is shared with `before`; no array is written to. */
export function foldWindow(before: LoadProfiles, window: CountedWindow): LoadProfiles {
  const { seconds } = window;
  const fast = 2 ** (-seconds / FAST_HALF_LIFE_SECONDS);
  const slow = 2 ** (-seconds / SLOW_HALF_LIFE_SECONDS);
  const fold = (profiles: Profiles, tokens: number, counts?: Float64Array): Profiles => ({
    fast: fade(profiles.fast, fast, tokens, counts),
    slow: fade(profiles.slow, slow, tokens, counts),
  });

  const { total, ...rest } = before;
  const all = totalOf(window, total.fast.share.length);
  const nothing: Profiles = emptyProfiles(all.share.length).total;
  const counted = new Map(window.series.map((one) => [`${one.task}:${one.phase}`, one]));
  const known = before.series.map((one) => {
    const name = `${one.task}:${one.phase}`;
    const gained = counted.get(name);
    counted.delete(name);
    return { ...one, ...fold(one, gained?.tokens ?? 0, gained?.expertTokens) };
  });
  const added = [...counted.values()].map(({ task, phase, tokens, expertTokens }) => {
    const { fast: quick, slow: steady } = fold(nothing, tokens, expertTokens);
    return { task, phase, fast: quick, slow: steady };
  });
  const perSecond = all.tokens / seconds;
  const isFirst = before.long.tokens === 0;
  return {
    ...rest,
    series: mostTokens([...known, ...added]),
    total: fold(total, all.tokens, all.share),
    long: fade(before.long, 1, all.tokens, all.share),
    last: all.tokens === 0 ? before.last : fade(nothing.fast, 0, all.tokens, all.share),
    tokensPerSecond: isFirst ? perSecond : fast * before.tokensPerSecond + (1 - fast) * perSecond,
    // A mean over steps, not over windows: a window of few long prefills says little of steps.
    stepped:
      window.steps === 0 || all.tokens === 0
        ? before.stepped
        : {
            tokens: fast * before.stepped.tokens + all.tokens,
            steps: fast * before.stepped.steps + window.steps,
          },
  };
}

/** All tokens of a window; `share` holds their counts, undivided. */
export function totalOf({ series }: CountedWindow, cells: number): Profile {
  const share = new Float64Array(cells);
  let tokens = 0;
  for (const one of series) {
    tokens += one.tokens;
    for (let i = 0; i < cells; i++) share[i] += one.expertTokens[i];
  }
  return { tokens, share };
}

/** A profile whose tokens count `factor` and that gains `counts` of `tokens` tokens. */
function fade(before: Profile, factor: number, tokens: number, counts?: Float64Array): Profile {
  const kept = before.tokens * factor;
  const sum = kept + tokens;
  // Idle: what is known of the experts stays, it is only worth less beside new tokens.
  if (tokens === 0 || counts === undefined) return { tokens: kept, share: before.share };
  return { tokens: sum, share: before.share.map((share, i) => (share * kept + counts[i]) / sum) };
}

function mostTokens(series: SeriesProfiles[]): SeriesProfiles[] {
  if (series.length <= MAX_SERIES) return series;
  return series.sort((a, b) => b.slow.tokens - a.slow.tokens).slice(0, MAX_SERIES);
}
