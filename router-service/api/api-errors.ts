/** What each error is at the doors: its HTTP status, OpenAI error body and gRPC status. */

import { status as grpcStatus } from "@grpc/grpc-js";

import { grpcStatusOf } from "../../core/platform/grpc.ts";
import { InvalidRequestError, QueueFullError, RequestTimeoutError } from "../engine/errors.ts";

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

/** What an error body says beside its message. */
interface Facts {
  readonly httpStatus: number;
  readonly type: string;
  readonly param?: string | undefined;
  readonly code?: string | undefined;
}

const INVALID = "invalid_request_error";

/** What the doors say about any thrown value; the text of what is not ours stays in the log. */
export function doorError(error: unknown): DoorError {
  const { code: grpcCode, details } = grpcStatusOf(error);
  const { httpStatus, type, param, code } = factsOf(error, grpcCode);
  const internal = "internal error; the router's log has the details";
  return {
    httpStatus,
    grpcStatus: grpcCode,
    message: httpStatus === 500 ? internal : details,
    type,
    param: param ?? null,
    code: code ?? null,
  };
}

/** OpenAI's body for an error. */
export function errorBody(error: DoorError): ErrorBody {
  const { message, type, param, code } = error;
  return { error: { message, type, param, code } };
}

function factsOf(error: unknown, grpcCode: grpcStatus): Facts {
  if (error instanceof InvalidRequestError) {
    return { httpStatus: 400, type: INVALID, param: error.param, code: error.code };
  }
  if (error instanceof NoTokenizerError) {
    return { httpStatus: 400, type: INVALID, param: error.param, code: "no_tokenizer" };
  }
  if (error instanceof UnauthenticatedError) {
    return { httpStatus: 401, type: INVALID, code: "invalid_api_key" };
  }
  if (error instanceof NotFoundError) {
    return { httpStatus: 404, type: INVALID, param: error.param, code: error.code };
  }
  if (error instanceof TransportError) {
    return { httpStatus: error.httpStatus, type: INVALID, code: error.code };
  }
  if (error instanceof QueueFullError) {
    return { httpStatus: 429, type: "rate_limit_error", code: "queue_full" };
  }
  if (error instanceof RequestTimeoutError) {
    return { httpStatus: 504, type: "server_error", code: "request_timeout" };
  }
  if (error instanceof ClientGoneError) {
    return { httpStatus: 499, type: INVALID, code: "client_gone" };
  }
  // A lost shard is told by whoever dispatches; the table of gRPC statuses knows them all.
  if (grpcCode === grpcStatus.UNAVAILABLE) {
    return { httpStatus: 503, type: "server_error", code: "unavailable" };
  }
  return { httpStatus: 500, type: "server_error", code: "internal_error" };
}
