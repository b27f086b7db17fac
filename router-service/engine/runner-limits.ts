/** What a model runner is given room for. */

import { kvWidth, type ModelConfig } from "../../core/model/config.ts";
import { BLOCK_SIZE, type StepBatch } from "./model-runner.ts";

/** Bounds of a step and of the KV cache. */
export interface RunnerLimits {
  readonly maxTokens: number;
  readonly maxSequences: number;
  readonly maxSamples: number;
  readonly maxModelLen: number;
  readonly numBlocks: number;
  /** What makes the context shorter than the model's positions; absent where it is not, or the user set its length. */
  readonly contextLimitedBy?: string;
}

/** Sampled rows of a step at most, beside one per sequence: what prompt log-probabilities of one chunk may take. */
const PROMPT_SAMPLES = 64;

/** Memory that the KV cache takes where the user does not say and one full sequence takes less, bytes. */
const DEFAULT_CACHE_BYTES = 128 * 2 ** 20;

/** Memory that one full sequence takes at most where the user says neither its length nor the cache's size, bytes. */
const MAX_DEFAULT_CACHE_BYTES = 4 * 2 ** 30;

/** The user's say in the limits. */
export interface LimitSettings {
  readonly maxNumSeqs: number;
  readonly maxNumBatchedTokens: number;
  readonly maxModelLen?: number;
  readonly kvBlocks?: number;
}

/** A setting asks for more than the model has. */
export class LimitError extends Error {
  override readonly name = "LimitError";
}

/**
 * Limits from settings and model. Without kvBlocks there is room for every sequence at full length within
 * DEFAULT_CACHE_BYTES, else for one, as far as a binding and MAX_DEFAULT_CACHE_BYTES go; the context is never longer
 * than the cache. Throws LimitError.
 * @param bindingBytes largest binding of the adapter, which a layer's cache lies in; on the CPU there is no such bound
 */
export function runnerLimits(
  settings: LimitSettings,
  config: ModelConfig,
  bindingBytes = Number.POSITIVE_INFINITY,
): RunnerLimits {
  const { maxNumSeqs, maxNumBatchedTokens } = settings;
  const longest = settings.maxModelLen ?? config.maxPositions;
  if (longest > config.maxPositions) {
    throw new LimitError(
      `--max-model-len ${longest}: the model was made for ${config.maxPositions} positions`,
    );
  }
  const { numBlocks, boundBy } = cacheBlocks(settings, config, longest, bindingBytes);
  const maxModelLen = Math.min(longest, numBlocks * BLOCK_SIZE);
  if (settings.maxModelLen !== undefined && longest > maxModelLen) {
    throw new LimitError(
      `--max-model-len ${longest}: ${numBlocks} KV blocks hold ${maxModelLen} tokens, bound by ${boundBy}`,
    );
  }
  return {
    maxTokens: Math.max(maxNumBatchedTokens, maxNumSeqs),
    maxSequences: maxNumSeqs,
    maxSamples: Math.max(maxNumSeqs, Math.min(maxNumBatchedTokens, PROMPT_SAMPLES)),
    maxModelLen,
    numBlocks,
    ...(maxModelLen < longest && { contextLimitedBy: boundBy }),
  };
}

/** Blocks of the KV cache, and what bounds them. Throws LimitError. */
function cacheBlocks(
  { maxNumSeqs, maxModelLen, kvBlocks }: LimitSettings,
  config: ModelConfig,
  longest: number,
  bindingBytes: number,
): { readonly numBlocks: number; readonly boundBy: string } {
  const layerBytes = BLOCK_SIZE * kvWidth(config.attention) * 4;
  const inBinding = Math.floor(bindingBytes / layerBytes);
  if ((kvBlocks ?? 1) > inBinding) {
    const asked = kvBlocks === undefined ? "one KV block" : `--kv-blocks ${kvBlocks}`;
    throw new LimitError(
      `${asked}: the KV cache of a layer takes ${(kvBlocks ?? 1) * layerBytes} bytes, the adapter's largest binding ${bindingBytes}`,
    );
  }
  if (kvBlocks !== undefined) return { numBlocks: kvBlocks, boundBy: "--kv-blocks" };
  const blocksIn = (bytes: number) => Math.floor(bytes / (config.numLayers * layerBytes));
  const full = Math.ceil(longest / BLOCK_SIZE);
  const oneSequence =
    maxModelLen === undefined ? Math.min(full, blocksIn(MAX_DEFAULT_CACHE_BYTES)) : full;
  const affordable = Math.max(1, oneSequence, blocksIn(DEFAULT_CACHE_BYTES));
  const wanted = Math.min(maxNumSeqs * full, affordable);
  return inBinding < wanted
    ? { numBlocks: inBinding, boundBy: "the adapter's largest binding" }
    : { numBlocks: wanted, boundBy: "the cache's default size; --kv-blocks sets another" };
}

/** Bounds of the second micro-batch of a step: never the larger half by more than an eighth of the whole. */
export function secondHalfLimits(limits: RunnerLimits): RunnerLimits {
  const maxTokens = Math.ceil(limits.maxTokens * 0.625);
  return { ...limits, maxTokens, maxSamples: Math.min(limits.maxSamples, maxTokens) };
}

/** Throws LimitError where the rows of a full step do not fit one message to or from a shard. */
export function checkMessageSize(
  limits: RunnerLimits,
  config: ModelConfig,
  maxMessageBytes: number,
): void {
  // In f32, as partial sums come back; ids, weights and header take less than a row of them.
  const bytes =
    (limits.maxTokens + 1) * config.hiddenSize * 4 +
    limits.maxTokens * config.numExpertsPerToken * 6;
  if (bytes > maxMessageBytes) {
    throw new LimitError(
      `--max-num-batched-tokens ${limits.maxTokens}: a dispatch of ${bytes} bytes, a message takes at most ${maxMessageBytes}`,
    );
  }
}

/** Throws RangeError where a step passes a bound, naming it. */
export function checkBatch(batch: StepBatch, limits: RunnerLimits): void {
  const within = (what: string, value: number, limit: number) => {
    if (value > limit) throw new RangeError(`a step with ${value} ${what}, at most ${limit}`);
  };
  within("tokens", batch.tokenIds.length, limits.maxTokens);
  within("sequences", batch.blockTables.length, limits.maxSequences);
  within("sampled rows", batch.samples.length, limits.maxSamples);
  const longest = Math.ceil(limits.maxModelLen / BLOCK_SIZE);
  for (const table of batch.blockTables) within("blocks of one sequence", table.length, longest);
}
