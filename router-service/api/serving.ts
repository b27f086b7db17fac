/** What both doors serve from. */

import type { GenerationConfig, ModelConfig } from "../../core/model/config.ts";
import type { Tokenizer } from "../../core/model/tokenizer/text.ts";
import type { Log } from "../../core/platform/log.ts";
import { UnavailableError } from "../engine/errors.ts";
import type { Engine } from "../engine/request.ts";
import { NotFoundError } from "./api-errors.ts";
import type { PlacementSource } from "./placement-source.ts";
import type { OpenRequests } from "./open-requests.ts";

/** Bounds of both doors. */
export interface ApiLimits {
  /** Bytes of a request body or gRPC message. */
  readonly bodyBytes: number;
  /** Milliseconds that a client may leave a full connection unread before it is dropped. */
  readonly unreadMs: number;
}

/** What is known of a prompt when all its completions have come to their end. */
export interface PromptReport {
  /** Completions of the prompt. */
  readonly n: number;
  /** Tokens generated for the longest of them. */
  readonly maxCompletionTokens: number;
}

/** The model and the engine behind the doors. */
export interface Serving {
  readonly engine: Engine;
  /** Absent where the model's directory has none: token-id prompts only. */
  readonly tokenizer: Tokenizer | undefined;
  /** Bytes of the longest token of the vocabulary. */
  readonly longestTokenBytes: number;
  readonly config: ModelConfig;
  readonly generation: GenerationConfig;
  readonly servedModelName: string;
  /** Seconds since 1970 at which the server started. */
  readonly startedAt: number;
  /** Why new requests are refused now; undefined while they are served. */
  readonly unavailableReason: () => string | undefined;
  readonly openRequests: OpenRequests;
  readonly limits: ApiLimits;
  readonly log: Pick<Log, "warn" | "error">;
  /** Told of each prompt whose completions have all come to their end. */
  readonly onPrompt: (report: PromptReport) => void;
  /** Shards in the placement; 0: the router holds all experts. */
  readonly numShards: () => number;
  /** What is known of shards and placement, undefined while the router starts; absent: there are no shards. */
  readonly placement: (() => PlacementSource | undefined) | undefined;
}

/** Throws UnavailableError with the reason while requests are refused. */
export function checkAvailable(serving: Serving): void {
  const reason = serving.unavailableReason();
  if (reason !== undefined) throw new UnavailableError(reason);
}

/** Throws NotFoundError unless the name is the served model's or absent. */
export function checkModel(serving: Serving, model: string | undefined): void {
  if (model === undefined || model === serving.servedModelName) return;
  throw new NotFoundError(
    `model: ${JSON.stringify(model.slice(0, 128))} does not exist, this server has ${JSON.stringify(serving.servedModelName)}`,
    "model_not_found",
    "model",
  );
}
