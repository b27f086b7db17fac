/** Text out of a request's token ids, between the engine and the API's doors: decoding, stop strings, counts. */

import { createIncrementalDecoder } from "../../core/model/tokenizer/incremental-decoder.ts";
import type { Tokenizer } from "../../core/model/tokenizer/text.ts";
import { InvalidRequestError } from "./errors.ts";
import type {
  Engine,
  EngineEvent,
  EngineRequest,
  FinishReason,
  PositionLogprobs,
} from "./request.ts";
import { createStopMatcher } from "./stop-matcher.ts";

/** What a generation yields, in this order: prompt once, deltas any number of times, finish once. */
export type TextEvent =
  | {
      readonly type: "prompt";
      /** Prompt tokens found in the prefix cache. */
      readonly cachedTokens: number;
      /** One per prompt token, undefined for the first; present where asked for. */
      readonly promptLogprobs?: readonly (PositionLogprobs | undefined)[];
    }
  | {
      readonly type: "delta";
      /** New text without special tokens; never splits a character; empty while it could begin a stop string, and without a tokenizer. */
      readonly text: string;
      /** New tokens; empty where only held-back text is released. */
      readonly tokenIds: readonly number[];
      /** One per token id; present where asked for. */
      readonly logprobs?: readonly PositionLogprobs[];
    }
  | {
      readonly type: "finish";
      readonly reason: FinishReason;
      /** The stop string or the id among `stopTokenIds` that ended it; absent for an end-of-sequence id. */
      readonly stopReason?: string | number;
      /** The end-of-sequence or stop id that ended it: in no delta, but counted. */
      readonly stopTokenId?: number;
      /** Of that id; present where asked for. */
      readonly logprobs?: PositionLogprobs;
      /** Generated tokens, with the stop id or the tokens of the stop string. */
      readonly completionTokens: number;
    };

/** Where a generation gets its tokens and its text from. */
export interface TextSource {
  readonly engine: Engine;
  /** Absent: only token ids flow, every text is empty. */
  readonly tokenizer?: Tokenizer;
  readonly request: EngineRequest;
}

/**
 * Generates one completion. Stop strings end the text before them; they may cross token borders, and those that end
 * within the first `minTokens` tokens are text like any other.
 * Throws on the first `next()` what Engine.submit throws, and InvalidRequestError for stop strings without a
 * tokenizer; later what Engine.submit throws later.
 */
export async function* generateText(source: TextSource): AsyncGenerator<TextEvent, void> {
  const { engine, tokenizer, request } = source;
  const { stop, stopTokenIds, minTokens } = request.sampling;
  if (tokenizer === undefined && stop.length > 0) {
    throw new InvalidRequestError("stop strings need a tokenizer; this model has none", "stop");
  }
  const decoder =
    tokenizer &&
    createIncrementalDecoder(tokenizer, {
      skipSpecialTokens: true,
      after: request.promptTokenIds,
    });
  const stops = createStopMatcher(stop);
  let completionTokens = 0;
  let stopString: string | undefined;
  for await (const event of engine.submit(request)) {
    if (event.type === "prompt") {
      yield event;
    } else if (event.type === "token") {
      completionTokens++;
      const found = stops.push(decoder?.push([event.tokenId]) ?? "", completionTokens > minTokens);
      yield delta(found.text, [event.tokenId], event.logprobs && [event.logprobs]);
      stopString = found.match;
      if (stopString !== undefined) break; // ends the sequence in the engine before the reader hears of it
    } else {
      const tail = stops.flush(decoder?.flush() ?? "");
      if (tail !== "")
        yield delta(tail, [], request.sampling.logprobs === undefined ? undefined : []);
      yield finish(event);
    }
  }
  if (stopString !== undefined) {
    yield { type: "finish", reason: "stop", stopReason: stopString, completionTokens };
  }

  function delta(
    text: string,
    tokenIds: readonly number[],
    logprobs: readonly PositionLogprobs[] | undefined,
  ): TextEvent {
    return { type: "delta", text, tokenIds, ...(logprobs && { logprobs }) };
  }

  function finish(event: Extract<EngineEvent, { type: "finish" }>): TextEvent {
    const { reason, stopTokenId, logprobs } = event;
    if (stopTokenId === undefined) return { type: "finish", reason, completionTokens };
    const stopReason = stopTokenIds.includes(stopTokenId) ? { stopReason: stopTokenId } : {};
    completionTokens++;
    return {
      type: "finish",
      reason,
      ...stopReason,
      stopTokenId,
      ...(logprobs && { logprobs }),
      completionTokens,
    };
  }
}
