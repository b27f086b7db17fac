/** Chooses the next token from its logits: penalties, truncation, the draw, and log-probabilities. */

import type { SampleWish } from "./batch.ts";
import { MAX_CANDIDATES, type SampleLogits } from "./model-runner.ts";
import type { PositionLogprobs, SamplingParams, TokenLogprob } from "./request.ts";

/** What the choice depends on beside logits and options. */
export interface SamplingState {
  /** Distinct ids of the prompt. */
  readonly promptTokenIds: ReadonlySet<number>;
  /** How often each id has been generated. */
  readonly generatedCounts: ReadonlyMap<number, number>;
  readonly numGenerated: number;
  /** Ids that would end the sequence, distinct: not chosen before minTokens. */
  readonly endingTokenIds: readonly number[];
}

/** A row of logits without a finite, comparable maximum: the model's output is broken. */
export class BrokenLogitsError extends Error {
  override readonly name = "BrokenLogitsError";
}

/**
 * What must be read back to choose the next token: so many candidates that they decide it exactly, else all logits.
 * Log-probabilities of `logprobs` tokens come from candidates in either case.
 */
export function sampleRequirements(params: SamplingParams, state: SamplingState): SampleWish {
  const forLogprobs = Math.max(1, params.logprobs ?? 0);
  const numMasked = maskedIds(params, state).length;
  const numWanted = params.temperature === 0 ? 1 : params.topK;
  const numCandidates = numWanted + numMasked;
  const candidatesDo =
    !changesLogits(params) &&
    numWanted > 0 &&
    Math.max(numCandidates, forLogprobs) <= MAX_CANDIDATES;
  return candidatesDo
    ? { numCandidates: Math.max(numCandidates, forLogprobs), fullLogits: false }
    : { numCandidates: forLogprobs, fullLogits: true };
}

/** Whether the next token is the most likely one, whatever the logits are. */
export function choosesMostLikely(params: SamplingParams, state: SamplingState): boolean {
  return (
    params.temperature === 0 && !changesLogits(params) && maskedIds(params, state).length === 0
  );
}

/**
 * Chooses the next token. Logits change in this order: minTokens' mask, logit_bias, repetition, frequency and presence
 * penalty, temperature; then min_p, top_k and top_p truncate in this order, as vLLM does; ties go to the lower id.
 * @param logits what `sampleRequirements` asked for
 * @param uniform a number in [0, 1) that decides the draw; not looked at where temperature is 0
 * Throws BrokenLogitsError where there is nothing to choose from.
 */
export function sampleToken(
  logits: SampleLogits,
  params: SamplingParams,
  state: SamplingState,
  uniform: number,
): number {
  const values = changedLogits(logits, params, state);
  const best = indexOfBest(values);
  if (!Number.isFinite(values[best]) || !Number.isFinite(logits.logSumExp)) {
    throw new BrokenLogitsError(
      `no token to choose: best logit ${values[best]}, logSumExp ${logits.logSumExp}`,
    );
  }
  const chosen =
    params.temperature === 0 ? best : draw(truncated(values, values[best], params), uniform);
  return logits.logits === undefined ? logits.candidateIds[chosen] : chosen;
}

/**
 * Log-probability of a token and of the `numTop` most likely in its place, before any change to the logits.
 * Throws BrokenLogitsError where the row has no finite log-sum-exp.
 */
export function tokenLogprobs(
  logits: SampleLogits,
  tokenId: number,
  numTop: number,
): PositionLogprobs {
  const rank = logits.candidateIds.indexOf(tokenId);
  const logit = rank < 0 ? logits.logits?.[tokenId] : logits.candidateLogits[rank];
  return positionLogprobs(logits, tokenId, logit ?? Number.NaN, numTop);
}

/** The same for a prompt token, whose logit was asked for as the row's target. */
export function targetLogprobs(
  logits: SampleLogits,
  tokenId: number,
  numTop: number,
): PositionLogprobs {
  return positionLogprobs(logits, tokenId, logits.targetLogit, numTop);
}

function positionLogprobs(
  { candidateIds, candidateLogits, logSumExp }: SampleLogits,
  tokenId: number,
  logit: number,
  numTop: number,
): PositionLogprobs {
  if (!Number.isFinite(logSumExp)) {
    throw new BrokenLogitsError(`token ${tokenId} has no log-probability: logSumExp ${logSumExp}`);
  }
  const top: TokenLogprob[] = [];
  for (let i = 0; i < Math.min(numTop, candidateIds.length); i++) {
    top.push({ tokenId: candidateIds[i], logprob: candidateLogits[i] - logSumExp });
  }
  return { token: { tokenId, logprob: logit - logSumExp }, top };
}

/** Whether an option can put a token that is no candidate before one that is. */
function changesLogits(params: SamplingParams): boolean {
  return (
    params.logitBias.size > 0 ||
    params.repetitionPenalty !== 1 ||
    params.frequencyPenalty !== 0 ||
    params.presencePenalty !== 0
  );
}

function maskedIds(params: SamplingParams, state: SamplingState): readonly number[] {
  return state.numGenerated < params.minTokens ? state.endingTokenIds : [];
}

/**
 * Logits after mask, bias and penalties: of the candidates, or of all tokens where they were read back. Equal values
 * are in order of id either way, so the lower index wins a tie.
 */
function changedLogits(
  { candidateIds, candidateLogits, logits }: SampleLogits,
  params: SamplingParams,
  state: SamplingState,
): Float64Array {
  const values = Float64Array.from(logits ?? candidateLogits);
  for (const id of maskedIds(params, state)) {
    const index = logits === undefined ? candidateIds.indexOf(id) : id;
    if (index >= 0 && index < values.length) values[index] = -Infinity;
  }
  if (!changesLogits(params)) return values;
  for (const [id, bias] of params.logitBias) values[id] += bias;
  const { promptTokenIds, generatedCounts } = state;
  if (params.repetitionPenalty !== 1) {
    for (const id of promptTokenIds.union(generatedCounts)) {
      values[id] =
        values[id] > 0
          ? values[id] / params.repetitionPenalty
          : values[id] * params.repetitionPenalty;
    }
  }
  for (const [id, count] of generatedCounts) {
    values[id] -= count * params.frequencyPenalty + params.presencePenalty;
  }
  return values;
}

function indexOfBest(values: Float64Array): number {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (values[i] > values[best]) best = i;
  return best;
}

/** Tokens that may be drawn, by index, and how likely each is relative to the most likely of all. */
interface Drawable {
  readonly indices: readonly number[];
  readonly weights: Float64Array;
}

/** What min_p, top_k and top_p leave: by rank where a rank matters, else in order of index. */
function truncated(values: Float64Array, best: number, params: SamplingParams): Drawable {
  const { temperature, topK, topP, minP } = params;
  const weights = values.map((value) => Math.exp((value - best) / temperature));
  const likely = [...weights.keys()].filter((i) => weights[i] >= minP);
  if (topK === 0 && topP >= 1) return { indices: likely, weights };
  const total = massOf(likely, weights);
  const enough = (some: number[]) =>
    topK > 0 ? some.length >= topK : massOf(some, weights) >= topP * total;
  let ranked = rankedHead(likely, values, best, temperature, enough);
  if (topK > 0) ranked = ranked.slice(0, topK);
  if (topP >= 1) return { indices: ranked, weights };
  const mass = topP * (topK > 0 ? massOf(ranked, weights) : total);
  let sum = 0;
  const last = ranked.findIndex((i) => (sum += weights[i]) >= mass);
  return { indices: last < 0 ? ranked : ranked.slice(0, last + 1), weights };
}

/** So many of the best indices that they are `enough`, best first: sorting a whole vocabulary is the slow way. */
function rankedHead(
  indices: readonly number[],
  values: Float64Array,
  best: number,
  temperature: number,
  enough: (some: number[]) => boolean,
): number[] {
  for (const depth of [2, 4, 8, 16, 32]) {
    const some = indices.filter((i) => values[i] >= best - depth * temperature);
    if (enough(some)) return some.sort((a, b) => values[b] - values[a] || a - b);
  }
  return indices.toSorted((a, b) => (values[a] === values[b] ? a - b : values[b] - values[a]));
}

function massOf(indices: readonly number[], weights: Float64Array): number {
  return indices.reduce((sum, i) => sum + weights[i], 0);
}

/** The index at the fraction `uniform` of the mass. */
function draw({ indices, weights }: Drawable, uniform: number): number {
  let left = uniform * massOf(indices, weights);
  for (const i of indices) {
    left -= weights[i];
    if (left < 0) return i;
  }
  // Rounding left a rest: the last that could be drawn.
  return indices.findLast((i) => weights[i] > 0) ?? indices[0];
}
