/** What the next steps will ask of each expert: several predictors, weighted by how little each has erred. Pure. */

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

/** A predictor whose error is this much above the least of a layer weighs 1/e of the best. */
const ERROR_SCALE = 0.01;

/** Tokens of a step where nobody has counted any steps. */
const DEFAULT_TOKENS_PER_STEP = 64;

/** Seconds that a forecast is for. */
const AHEAD_SECONDS = 10;

/** The shape of a model's load. */
export interface HistoryShape {
  readonly numMoeLayers: number;
  readonly numExperts: number;
  readonly topK: number;
}

/** What erred: a predictor, or the forecast that is made of them. */
export type Measured = Predictor | "forecast";

/** Windows so far, and how well each predictor foresaw them. */
export interface LoadHistory extends HistoryShape {
  readonly profiles: LoadProfiles;
  readonly errors: Readonly<Record<Measured, Errors>>;
}

/** Errors on past windows, newer ones and those with more tokens counting more. */
export interface Errors {
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
  /** Heaviest predictor of each layer [numMoeLayers]; undefined where there is no history: the load is even. */
  readonly chosen: readonly (Predictor | undefined)[];
  /** Errors of late over the layer's load, mean over the layers: 0 is perfect, 2 the worst; absent before any is measured. */
  readonly errors?: Readonly<Record<Measured, number>>;
}

/** A history before any window. */
export function emptyHistory({ numMoeLayers, numExperts, topK }: HistoryShape): LoadHistory {
  const none = (): Errors => ({
    tokens: 0,
    relative: new Float64Array(numMoeLayers),
    dispersion: new Float64Array(numMoeLayers),
  });
  const measured = [...PREDICTORS, "forecast"] as const;
  return {
    numMoeLayers,
    numExperts,
    topK,
    profiles: emptyProfiles(numMoeLayers * numExperts),
    errors: Object.fromEntries(measured.map((name) => [name, none()])) as LoadHistory["errors"],
  };
}

/**
 * History after one window more: first the errors on it are measured, of every predictor and of the forecast that they
 * would have made, then it is folded in.
 * @param queued what was expected next when the window began
 */
export function addWindow(
  history: LoadHistory,
  window: CountedWindow,
  queued: readonly QueuedTokens[],
): LoadHistory {
  const { profiles, numExperts } = history;
  const actual = totalOf(window, profiles.long.share.length);
  let { errors } = history;
  if (profiles.long.tokens > 0 && actual.tokens > 0) {
    const predictions = predictAll(history, queued, window.seconds);
    const observed = actual.share.map((count) => count / actual.tokens);
    const weight = {
      numExperts,
      kept: 2 ** (-window.seconds / ERROR_HALF_LIFE_SECONDS),
      tokens: actual.tokens,
    };
    const measured = [...PREDICTORS.entries()].map(
      ([i, name]) => [name, measure(errors[name], predictions[i], observed, weight)] as const,
    );
    const { share } = blend(history, predictions);
    errors = {
      ...(Object.fromEntries(measured) as Record<Predictor, Errors>),
      forecast: measure(errors.forecast, share, observed, weight),
    };
  }
  return { ...history, profiles: foldWindow(profiles, window), errors };
}

/**
 * The forecast for what is ahead: in each layer the mean of all predictors, weighted by their measured errors there, so
 * that one that has erred more than another by a few hundredths of the load has no say.
 */
export function forecastLoad(
  history: LoadHistory,
  options: {
    /** What is expected next of what waits or runs. */
    readonly queued: readonly QueuedTokens[];
    /** Absent: as counted of late. */
    readonly tokensPerStep?: number;
    /** Taken where no window has counted any yet; absent: 64. */
    readonly tokensPerStepSoFar?: number;
    /** Seconds that the forecast is for; absent: 10. */
    readonly seconds?: number;
  },
): LoadForecast {
  const { profiles, numMoeLayers, numExperts, topK, errors } = history;
  const { tokens: steppedTokens, steps } = profiles.stepped;
  const tokensPerStep =
    options.tokensPerStep ??
    (steps > 0 ? steppedTokens / steps : (options.tokensPerStepSoFar ?? DEFAULT_TOKENS_PER_STEP));
  if (profiles.long.tokens === 0) {
    const load = new Float64Array(numMoeLayers * numExperts);
    load.fill((topK / numExperts) * tokensPerStep);
    const chosen = Array.from({ length: numMoeLayers }, () => undefined);
    return { tokensPerStep, load, deviation: load.slice(), chosen };
  }
  const { queued, seconds = AHEAD_SECONDS } = options;
  const { share, chosen } = blend(history, predictAll(history, queued, seconds));
  const { tokens, dispersion } = errors.forecast;
  const deviation = share.map((expected, i) => {
    // Before anything was measured as if tokens chose independently.
    const perShare = tokens > 0 ? dispersion[Math.floor(i / numExperts)] : 1 / profiles.long.tokens;
    return Math.sqrt(perShare * expected) * tokensPerStep;
  });
  const load = share.map((one) => one * tokensPerStep);
  return {
    tokensPerStep,
    load,
    deviation,
    chosen,
    ...(tokens > 0 && { errors: meanErrors(errors) }),
  };
}

function meanErrors(errors: LoadHistory["errors"]): Record<Measured, number> {
  const means = Object.entries(errors).map(
    ([name, { relative }]) =>
      [name, relative.reduce((sum, one) => sum + one, 0) / relative.length] as const,
  );
  return Object.fromEntries(means) as Record<Measured, number>;
}

/** In the order of PREDICTORS. */
function predictAll(
  { profiles, numExperts }: LoadHistory,
  queued: readonly QueuedTokens[],
  seconds: number,
): Float64Array[] {
  return PREDICTORS.map((name) => predict(name, profiles, { queued, seconds, numExperts }));
}

function blend(
  { errors, numMoeLayers, numExperts }: LoadHistory,
  predictions: readonly Float64Array[],
): { readonly share: Float64Array; readonly chosen: Predictor[] } {
  const share = new Float64Array(numMoeLayers * numExperts);
  const chosen: Predictor[] = [];
  for (let l = 0; l < numMoeLayers; l++) {
    const ofLayer = PREDICTORS.map((name) => errors[name].relative[l]);
    const least = Math.min(...ofLayer);
    const weights = ofLayer.map((error) => Math.exp((least - error) / ERROR_SCALE));
    const sum = weights.reduce((total, one) => total + one, 0);
    chosen.push(PREDICTORS[ofLayer.indexOf(least)]);
    for (const [p, prediction] of predictions.entries()) {
      const weight = weights[p] / sum;
      for (let i = l * numExperts; i < (l + 1) * numExperts; i++) {
        share[i] += weight * prediction[i];
      }
    }
  }
  return { share, chosen };
}

function measure(
  before: Errors,
  predicted: Float64Array,
  observed: Float64Array,
  weight: { readonly numExperts: number; readonly kept: number; readonly tokens: number },
): Errors {
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
