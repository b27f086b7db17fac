/** What the next steps will ask of each expert: several predictors, and per layer the one that has erred least. Pure. */

import {
  emptyProfiles,
  foldWindow,
  totalOf,
  type CountedWindow,
  type LoadProfiles,
  type QueuedTokens,
} from "./windows.ts";
import { PREDICTORS, predict, type Predictor } from "./predictors.ts";

/** Seconds after which a predictor's error counts half. */
const ERROR_HALF_LIFE_SECONDS = 300;

/** Tokens of a step where nobody has counted any steps. */
const DEFAULT_TOKENS_PER_STEP = 64;

/** Seconds that a forecast is for. */
const AHEAD_SECONDS = 10;

/** The shape of a model's load, and how fast it may be forgotten. */
export interface HistoryShape {
  readonly numMoeLayers: number;
  readonly numExperts: number;
  readonly topK: number;
}

/** Windows so far, and how well each predictor foresaw them. */
export interface LoadHistory extends HistoryShape {
  readonly profiles: LoadProfiles;
  readonly errors: Readonly<Record<Predictor, PredictorErrors>>;
}

/** Errors of one predictor on past windows, newer ones and those with more tokens counting more. */
export interface PredictorErrors {
  /** Tokens that they were measured on, older ones in part. */
  readonly tokens: number;
  /** Mean absolute error over the layer's load: 0 is perfect, 2 the worst [numMoeLayers]. */
  readonly relative: Float64Array;
  /** Squared errors of the layer's shares, over their sum [numMoeLayers]. */
  readonly dispersion: Float64Array;
}

/** Load per step that is ahead. */
export interface LoadForecast {
  /** Tokens of a step that it is scaled to. */
  readonly tokensPerStep: number;
  /** Pairs of a token and an expert per step [numMoeLayers, numExperts]; a layer sums to topK · tokensPerStep. */
  readonly load: Float64Array;
  /** Standard deviation of the load's error as measured on past windows, pairs per step [numMoeLayers, numExperts]. */
  readonly deviation: Float64Array;
  /** Predictor of each layer [numMoeLayers]; undefined where there is no history: the load is even. */
  readonly chosen: readonly (Predictor | undefined)[];
}

/** A history before any window. */
export function emptyHistory({ numMoeLayers, numExperts, topK }: HistoryShape): LoadHistory {
  const none = (): PredictorErrors => ({
    tokens: 0,
    relative: new Float64Array(numMoeLayers),
    dispersion: new Float64Array(numMoeLayers),
  });
  return {
    numMoeLayers,
    numExperts,
    topK,
    profiles: emptyProfiles(numMoeLayers * numExperts),
    errors: Object.fromEntries(PREDICTORS.map((name) => [name, none()])) as LoadHistory["errors"],
  };
}

/**
 * History after one window more: first every predictor's error on it is measured, then it is folded in.
 * @param queued what waited or ran when the window began
 */
export function addWindow(
  history: LoadHistory,
  window: CountedWindow,
  queued: readonly QueuedTokens[],
): LoadHistory {
  const { profiles, numExperts } = history;
  const actual = totalOf(window, profiles.long.share.length);
  const ahead = { queued, seconds: window.seconds, numExperts };
  let { errors } = history;
  if (profiles.long.tokens > 0 && actual.tokens > 0) {
    const kept = 2 ** (-window.seconds / ERROR_HALF_LIFE_SECONDS);
    const observed = actual.share.map((count) => count / actual.tokens);
    errors = Object.fromEntries(
      PREDICTORS.map((name) => [
        name,
        measure(errors[name], predict(name, profiles, ahead), observed, {
          numExperts,
          kept,
          tokens: actual.tokens,
        }),
      ]),
    ) as LoadHistory["errors"];
  }
  return { ...history, profiles: foldWindow(profiles, window), errors };
}

/** The forecast for the next window, whose mix of tasks is that of `queued` as far as it reaches. */
export function forecastLoad(
  history: LoadHistory,
  options: {
    readonly queued: readonly QueuedTokens[];
    /** Absent: as counted. */
    readonly tokensPerStep?: number;
    /** Seconds that the forecast is for; absent: 10. */
    readonly seconds?: number;
  },
): LoadForecast {
  const { profiles, numMoeLayers, numExperts, topK, errors } = history;
  const ahead = { queued: options.queued, seconds: options.seconds ?? AHEAD_SECONDS, numExperts };
  const counted = profiles.tokensPerStep || DEFAULT_TOKENS_PER_STEP;
  const tokensPerStep = options.tokensPerStep ?? counted;
  const load = new Float64Array(numMoeLayers * numExperts);
  const deviation = new Float64Array(load.length);
  const chosen: (Predictor | undefined)[] = [];
  const shares = new Map<Predictor, Float64Array>();
  for (let l = 0; l < numMoeLayers; l++) {
    const name = profiles.long.tokens === 0 ? undefined : leastError(errors, l);
    chosen.push(name);
    if (name !== undefined && !shares.has(name)) {
      shares.set(name, predict(name, profiles, ahead));
    }
    const share = name === undefined ? undefined : shares.get(name);
    const dispersion = name === undefined ? 0 : dispersionOf(errors[name], l, profiles.long.tokens);
    for (let i = l * numExperts; i < (l + 1) * numExperts; i++) {
      const expected = share?.[i] ?? topK / numExperts;
      load[i] = expected * tokensPerStep;
      deviation[i] =
        share === undefined ? load[i] : Math.sqrt(dispersion * expected) * tokensPerStep;
    }
  }
  return { tokensPerStep, load, deviation, chosen };
}

/** The predictor with the least error in a layer; the first of PREDICTORS that has none measured or ties. */
function leastError(errors: LoadHistory["errors"], layer: number): Predictor {
  let best: Predictor = PREDICTORS[0];
  for (const name of PREDICTORS) {
    if (errors[name].relative[layer] < errors[best].relative[layer]) best = name;
  }
  return best;
}

/** As measured; before that as if tokens chose independently. */
function dispersionOf(errors: PredictorErrors, layer: number, tokens: number): number {
  return errors.tokens > 0 ? errors.dispersion[layer] : 1 / tokens;
}

function measure(
  before: PredictorErrors,
  predicted: Float64Array,
  observed: Float64Array,
  weight: { readonly numExperts: number; readonly kept: number; readonly tokens: number },
): PredictorErrors {
  const { numExperts, kept } = weight;
  const old = before.tokens * kept;
  const tokens = old + weight.tokens;
  const relative = before.relative.slice();
  const dispersion = before.dispersion.slice();
  for (let l = 0; l < relative.length; l++) {
    let off = 0;
    let square = 0;
    let sum = 0;
    for (let i = l * numExperts; i < (l + 1) * numExperts; i++) {
      const error = predicted[i] - observed[i];
      off += Math.abs(error);
      square += error * error;
      sum += observed[i];
    }
    // A layer that was not counted in this window says nothing of it.
    if (sum === 0) continue;
    relative[l] = (relative[l] * old + (off / sum) * weight.tokens) / tokens;
    dispersion[l] = (dispersion[l] * old + (square / sum) * weight.tokens) / tokens;
  }
  return { tokens, relative, dispersion };
}
