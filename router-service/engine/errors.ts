/** Why the engine does not answer a request. */

/** The waiting queue is at its bound. HTTP 429, gRPC RESOURCE_EXHAUSTED. */
export class QueueFullError extends Error {
  override readonly name = "QueueFullError";
  constructor(waiting: number, limit: number) {
    super(`the request queue is full: ${waiting} requests wait, the limit is ${limit}`);
  }
}

/** The request can not be served as it stands. HTTP 400, gRPC INVALID_ARGUMENT. */
export class InvalidRequestError extends Error {
  override readonly name = "InvalidRequestError";
  /** The field at fault, as the client named it. */
  readonly param: string | undefined;
  readonly code: string | undefined;
  constructor(message: string, param?: string, code?: string) {
    super(message);
    this.param = param;
    this.code = code;
  }
}

/** No living copy of an expert, a lost shard, or the service is stopping. HTTP 503, gRPC UNAVAILABLE. */
export class UnavailableError extends Error {
  override readonly name: string = "UnavailableError";
}

/** A step of the request failed by a fault of ours; `cause` says which. HTTP 500, gRPC INTERNAL. */
export class StepFailedError extends Error {
  override readonly name = "StepFailedError";
}

/** The request took longer than --request-timeout. HTTP 504, gRPC DEADLINE_EXCEEDED. */
export class RequestTimeoutError extends Error {
  override readonly name = "RequestTimeoutError";
  /** `why`: what it waited for, where that is known. */
  constructor(seconds: number, why?: string) {
    const because = why === undefined ? "" : `; ${why}`;
    super(`the request was not done within the request timeout of ${seconds} s${because}`);
  }
}
