/** Requests for engine tests, and their events collected. */

import { createEngine, type EngineOptions } from "../../router-service/engine/engine.ts";
import type {
  Engine,
  EngineEvent,
  EngineRequest,
  FinishReason,
  PositionLogprobs,
  SamplingParams,
} from "../../router-service/engine/request.ts";
import { greedy } from "../../bench/rig/greedy.ts";
import { createToyRunner, type ToyOptions, type ToyRunner } from "./toy-runner.ts";

let numRequests = 0;

/** A request with an id of its own, greedy unless it says otherwise. */
export function engineRequest(
  promptTokenIds: readonly number[],
  sampling: Partial<SamplingParams> = {},
  rest: Partial<EngineRequest> = {},
): EngineRequest {
  return {
    id: `request-${numRequests++}`,
    promptTokenIds,
    sampling: greedy(sampling),
    task: "default",
    signal: new AbortController().signal,
    ...rest,
  };
}

/** An engine over a toy runner; end-of-sequence ids there are none. */
export function toyEngine(toy: ToyOptions, options: Partial<EngineOptions> = {}) {
  const runner: ToyRunner = createToyRunner(toy);
  const engine = createEngine({
    runner,
    vocabSize: runner.vocabSize,
    eosTokenIds: [],
    maxModelLen: 4096,
    maxNumSeqs: 64,
    maxNumBatchedTokens: 256,
    maxQueue: 1024,
    requestTimeoutMs: 60_000,
    ...options,
  });
  return { engine, runner };
}

/** Everything that a request yielded. */
export interface Collected {
  readonly tokenIds: number[];
  readonly logprobs: (PositionLogprobs | undefined)[];
  cachedTokens: number;
  promptLogprobs?: readonly (PositionLogprobs | undefined)[];
  reason?: FinishReason;
  stopTokenId?: number;
}

/** Reads a request to its end. Throws what the engine throws. */
export async function collect(engine: Engine, request: EngineRequest): Promise<Collected> {
  return collectEvents(engine.submit(request));
}

/** Reads events to their end. Throws what the engine throws. */
async function collectEvents(events: AsyncIterable<EngineEvent>): Promise<Collected> {
  const collected: Collected = { tokenIds: [], logprobs: [], cachedTokens: -1 };
  for await (const event of events) {
    if (event.type === "prompt") {
      collected.cachedTokens = event.cachedTokens;
      collected.promptLogprobs = event.promptLogprobs;
    } else if (event.type === "token") {
      collected.tokenIds.push(event.tokenId);
      collected.logprobs.push(event.logprobs);
    } else {
      collected.reason = event.reason;
      collected.stopTokenId = event.stopTokenId;
    }
  }
  return collected;
}
