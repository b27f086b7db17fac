/** Whether a request can be served at all. */

import { InvalidRequestError } from "./errors.ts";
import { BLOCK_SIZE, MAX_CANDIDATES } from "./model-runner.ts";
import type { EngineRequest } from "./request.ts";

/** What bounds a single request. */
export interface RequestLimits {
  /** Longest prompt and completion together. */
  readonly maxModelLen: number;
  readonly vocabSize: number;
  /** KV blocks of the whole pool. */
  readonly numBlocks: number;
}

/**
 * Refuses what would never fit or has no meaning to the model, before it is queued.
 * Throws InvalidRequestError naming field, value and limit.
 */
export function checkRequest(request: EngineRequest, limits: RequestLimits): void {
  const { promptTokenIds, sampling } = request;
  const { maxTokens, logprobs = 0, promptLogprobs = 0, logitBias } = sampling;
  const { maxModelLen, vocabSize, numBlocks } = limits;
  if (promptTokenIds.length === 0) {
    throw new InvalidRequestError("the prompt is empty; at least one token is needed", "prompt");
  }
  const total = promptTokenIds.length + maxTokens;
  if (total > maxModelLen) {
    throw new InvalidRequestError(
      `the model's context is ${maxModelLen} tokens; ${total} were asked for: ` +
        `${promptTokenIds.length} in the prompt and ${maxTokens} in the completion`,
      promptTokenIds.length > maxModelLen ? "prompt" : "max_tokens",
      "context_length_exceeded",
    );
  }
  // The last token is never read back by attention.
  const numCached = Math.max(promptTokenIds.length, total - 1);
  if (numCached > numBlocks * BLOCK_SIZE) {
    throw new InvalidRequestError(
      `prompt and completion need ${Math.ceil(numCached / BLOCK_SIZE)} KV blocks of ` +
        `${BLOCK_SIZE} tokens; there are ${numBlocks}`,
      "max_tokens",
      "context_length_exceeded",
    );
  }
  const isToken = (id: number) => Number.isInteger(id) && id >= 0 && id < vocabSize;
  const badIndex = promptTokenIds.findIndex((id) => !isToken(id));
  if (badIndex >= 0) {
    throw new InvalidRequestError(
      `token ${badIndex} of the prompt is ${promptTokenIds[badIndex]}; ids are 0 to ${vocabSize - 1}`,
      "prompt",
    );
  }
  for (const id of logitBias.keys()) {
    if (isToken(id)) continue;
    throw new InvalidRequestError(
      `logit_bias names token id ${id}; ids are 0 to ${vocabSize - 1}`,
      "logit_bias",
    );
  }
  for (const [name, value] of Object.entries({ logprobs, prompt_logprobs: promptLogprobs })) {
    if (value <= MAX_CANDIDATES) continue;
    throw new InvalidRequestError(`${name} is ${value}, at most ${MAX_CANDIDATES}`, name);
  }
}
