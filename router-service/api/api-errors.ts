/** One table: an error of ours ⇄ its HTTP status, OpenAI error body and gRPC status. */

import { status as grpcStatus } from "@grpc/grpc-js";

import {
  InvalidRequestError,
  QueueFullError,
  RequestTimeoutError,
  UnavailableError,
} from "../engine/errors.ts";

/** OpenAI's error body; all four keys are always there. */
export interface ErrorBody {
  readonly error: {
    readonly message: string;
    readonly type: string;
    readonly param: string | null;
    readonly code: string | null;
  };
}

/** An error as both doors say it. */
export interface DoorError {
  readonly httpStatus: number;
  readonly grpcStatus: grpcStatus;
  readonly message: string;
  readonly type: string;
  readonly param: string | null;
  readonly code: string | null;
}

/** The request has no valid API key. HTTP 401, gRPC UNAUTHENTICATED. */
export class UnauthenticatedError extends Error {
  override readonly name = "UnauthenticatedError";
}

/** The route or the model does not exist. HTTP 404, gRPC NOT_FOUND. */
export class NotFoundError extends Error {
  override readonly name = "NotFoundError";
  readonly param: string | undefined;
  readonly code: string;
  constructor(message: string, code: string, param?: string) {
    super(message);
    this.code = code;
    this.param = param;
  }
}

/** The model has no tokenizer, so text can not be served. HTTP 400, gRPC FAILED_PRECONDITION. */
export class NoTokenizerError extends Error {
  override readonly name = "NoTokenizerError";
  readonly param: string;
  constructor(param: string) {
    super(
      `${param}: the model's directory has no tokenizer.json, so text can not be encoded; send token ids`,
    );
    this.param = param;
  }
}

/** The HTTP framework refuses the request before a handler sees it. */
export class TransportError extends Error {
  override readonly name = "TransportError";
  readonly httpStatus: number;
  readonly code: string;
  constructor(httpStatus: number, message: string, code: string) {
    super(message);
    this.httpStatus = httpStatus;
    this.code = code;
  }
}

/** The client went away or stopped reading; nobody reads the answer. */
export class ClientGoneError extends Error {
  override readonly name = "ClientGoneError";
}

const INVALID = "invalid_request_error";

/** What the doors say about any thrown value; what is not ours is an internal error whose text stays inside. */
export function doorError(error: unknown): DoorError {
  const say = (
    httpStatus: number,
    code: grpcStatus,
    type: string,
    options: { param?: string; code?: string; message?: string } = {},
  ): DoorError => ({
    httpStatus,
    grpcStatus: code,
    message: options.message ?? (error as Error).message,
    type,
    param: options.param ?? null,
    code: options.code ?? null,
  });
  if (error instanceof InvalidRequestError) {
    return say(400, grpcStatus.INVALID_ARGUMENT, INVALID, { param: error.param, code: error.code });
  }
  if (error instanceof NoTokenizerError) {
    const options = { param: error.param, code: "no_tokenizer" };
    return say(400, grpcStatus.FAILED_PRECONDITION, INVALID, options);
  }
  if (error instanceof UnauthenticatedError) {
    return say(401, grpcStatus.UNAUTHENTICATED, INVALID, { code: "invalid_api_key" });
  }
  if (error instanceof NotFoundError) {
    return say(404, grpcStatus.NOT_FOUND, INVALID, { param: error.param, code: error.code });
  }
  if (error instanceof TransportError) {
    return say(error.httpStatus, grpcStatus.INVALID_ARGUMENT, INVALID, { code: error.code });
  }
  if (error instanceof QueueFullError) {
    return say(429, grpcStatus.RESOURCE_EXHAUSTED, "rate_limit_error", { code: "queue_full" });
  }
  if (error instanceof UnavailableError) {
    return say(503, grpcStatus.UNAVAILABLE, "server_error", { code: "unavailable" });
  }
  if (error instanceof RequestTimeoutError) {
    return say(504, grpcStatus.DEADLINE_EXCEEDED, "server_error", { code: "request_timeout" });
  }
  if (error instanceof ClientGoneError) {
    return say(499, grpcStatus.CANCELLED, INVALID, { code: "client_gone" });
  }
  return say(500, grpcStatus.INTERNAL, "server_error", {
    code: "internal_error",
    message: "internal error; the router's log has the details",
  });
}

/** OpenAI's body for an error. */
export function errorBody(error: DoorError): ErrorBody {
  const { message, type, param, code } = error;
  return { error: { message, type, param, code } };
}
