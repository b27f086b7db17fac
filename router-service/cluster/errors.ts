/** Why the experts of a step could not be reached; the engine sees UnavailableError. */

import type { DispatchErrorCode } from "../../proto/gen/switchyard/v1/expert.ts";
import { UnavailableError } from "../engine/errors.ts";

/** The stream to a shard broke, or there is none. */
export class ShardLostError extends UnavailableError {
  override readonly name = "ShardLostError";
  constructor(shard: string, reason: string) {
    super(`${shard} is lost: ${reason}`);
  }
}

/** A shard did not answer within the dispatch timeout. */
export class DispatchTimeoutError extends UnavailableError {
  override readonly name = "DispatchTimeoutError";
  constructor(shard: string, layer: number, timeoutMs: number) {
    super(`${shard} did not answer a dispatch of layer ${layer} within ${timeoutMs} ms`);
  }
}

/** A shard answered a dispatch with an error, or with something that is no answer to it. */
export class DispatchFailedError extends UnavailableError {
  override readonly name = "DispatchFailedError";
  readonly code: DispatchErrorCode;
  constructor(shard: string, layer: number, code: DispatchErrorCode, message: string) {
    super(`${shard} refused a dispatch of layer ${layer}: ${message}`);
    this.code = code;
  }
}

/** The shards together can not hold the experts. */
export class PlacementError extends Error {
  override readonly name = "PlacementError";
}

/** A shard does not hold a placement and will not; the epochs that it serves stay as they are. */
export class PlacementRefusedError extends Error {
  override readonly name = "PlacementRefusedError";
  constructor(shard: string, epoch: number, reason: string) {
    super(`${shard} refused placement ${epoch}: ${reason}`);
  }
}
