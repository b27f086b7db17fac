/** The gRPC door: switchyard.v1.InferenceService, health and reflection. */

import { randomUUID } from "node:crypto";

import {
  type Metadata,
  Server,
  type ServerUnaryCall,
  type ServerWritableStream,
  type sendUnaryData,
} from "@grpc/grpc-js";

import { serverOptions } from "../../core/platform/grpc.ts";
import {
  type GenerateChunk,
  type GenerateRequest,
  type GenerateResponse,
  type GetModelInfoResponse,
  type InferenceServiceServer,
  InferenceServiceService,
  type TokenizeRequest,
  type TokenizeResponse,
} from "../../proto/gen/switchyard/v1/inference.ts";
import { InvalidRequestError } from "../engine/errors.ts";
import { emptyUsage } from "./answer.ts";
import { ClientGoneError, doorError } from "./api-errors.ts";
import type { CheckApiKey } from "./api-key.ts";
import { collectChoices, countUsage, type Run, runChoices } from "./choices.ts";
import { chunkOf, FINISH, planGenerate, wirePosition, wirePrompt } from "./grpc-generate.ts";
import { addHealthService } from "./grpc-health.ts";
import { addReflectionService } from "./grpc-reflection.ts";
import { encodeText, requireTokenizer } from "./prompts.ts";
import { RequestSpan } from "./request-span.ts";
import { checkAvailable, type Serving } from "./serving.ts";
import { taskLabel } from "./task-label.ts";

const SERVICE = "switchyard.v1.InferenceService";
const MAX_REQUEST_ID = 128;

type Call = ServerUnaryCall<unknown, unknown> | ServerWritableStream<unknown, unknown>;

/** The gRPC server with all its services, not listening yet, and what stops its health watch. */
export function createGrpcServer(
  serving: Serving,
  checkApiKey: CheckApiKey,
): { server: Server; stopHealth: () => void } {
  const server = new Server({
    ...serverOptions,
    "grpc.max_receive_message_length": serving.limits.bodyBytes,
  });
  server.addService(definition, implementation(serving, checkApiKey));
  const stopHealth = addHealthService(server, [SERVICE], serving.unavailableReason);
  addReflectionService(server, [SERVICE]);
  return { server, stopHealth };
}

/** A message whose bytes are not what the proto file says. */
class Malformed {
  readonly problem: string;
  constructor(problem: string) {
    this.problem = problem;
  }
}

/** The service with decoding that never throws: grpc-js would answer INTERNAL without a word of why. */
const definition = Object.fromEntries(
  Object.entries(InferenceServiceService).map(([name, method]) => {
    const requestDeserialize = (bytes: Buffer): unknown => {
      try {
        return method.requestDeserialize(bytes);
      } catch (error) {
        return new Malformed((error as Error).message);
      }
    };
    return [name, Object.assign({ ...method }, { requestDeserialize })];
  }),
) as unknown as typeof InferenceServiceService;

function implementation(serving: Serving, checkApiKey: CheckApiKey): InferenceServiceServer {
  /** Answers a unary call with what `make` returns or throws. */
  const unary =
    <Request, Response>(make: (call: ServerUnaryCall<Request, Response>) => Promise<Response>) =>
    (call: ServerUnaryCall<Request, Response>, callback: sendUnaryData<Response>): void => {
      const answer = async (): Promise<void> => {
        let response: Response;
        try {
          check(call, checkApiKey);
          response = await make(call);
        } catch (error) {
          callback(statusOf(serving, error));
          return;
        }
        callback(null, response);
      };
      void answer();
    };
  return {
    generate: unary((call) => generate(serving, call)),
    generateStream: (call) => {
      const answer = async (): Promise<void> => {
        try {
          check(call, checkApiKey);
          await generateStream(serving, call);
          call.end();
        } catch (error) {
          call.emit("error", statusOf(serving, error));
        }
      };
      void answer();
    },
    tokenize: unary((call) => Promise.resolve(tokenize(serving, call.request))),
    getModelInfo: unary(() => Promise.resolve(modelInfo(serving))),
  };
}

function check(call: Call, checkApiKey: CheckApiKey): void {
  checkApiKey(metadataText(call.metadata, "authorization"));
  if (!(call.request instanceof Malformed)) return;
  const { problem } = call.request;
  // The seed is the one 64-bit field.
  const field = problem.includes("MAX_SAFE_INTEGER") ? "sampling.seed" : undefined;
  const message =
    field === undefined
      ? `the message can not be decoded: ${problem}`
      : `${field}: is larger than ${Number.MAX_SAFE_INTEGER}`;
  throw new InvalidRequestError(message, field);
}

async function generate(
  serving: Serving,
  call: ServerUnaryCall<GenerateRequest, GenerateResponse>,
): Promise<GenerateResponse> {
  return withRun(serving, call, false, async (request) => {
    const { choice, run, span, requestId } = request;
    const usage = emptyUsage();
    const [result] = await collectChoices(serving, [choice], run, (_, event) => {
      countUsage(usage, choice, event);
      if (event.type === "delta") span.firstToken();
    });
    span.finish(serving.servedModelName, usage, [result.finish.reason]);
    return {
      requestId,
      text: result.text,
      tokenIds: [...result.tokenIds],
      finishReason: FINISH[result.finish.reason],
      usage,
      logprobs: result.logprobs.map(wirePosition),
      promptLogprobs: wirePrompt(choice, result.prompt.promptLogprobs ?? []),
    };
  });
}

async function generateStream(
  serving: Serving,
  call: ServerWritableStream<GenerateRequest, GenerateChunk>,
): Promise<void> {
  await withRun(serving, call, true, async ({ choice, run, span, requestId }) => {
    const usage = emptyUsage();
    await runChoices(serving, [choice], run, async (_, event) => {
      countUsage(usage, choice, event);
      if (event.type === "delta") span.firstToken();
      const chunk = chunkOf(requestId, choice, event, usage);
      if (chunk !== undefined) await write(call, chunk, run, serving.limits.unreadMs);
      if (event.type === "finish") span.finish(serving.servedModelName, usage, [event.reason]);
    });
  });
}

interface GrpcRun {
  readonly choice: ReturnType<typeof planGenerate>;
  readonly run: Run;
  readonly span: RequestSpan;
  readonly requestId: string;
}

/** Checks and plans a request and runs it with a span and an abort that follows the call's cancellation. */
async function withRun<Result>(
  serving: Serving,
  call: ServerUnaryCall<GenerateRequest, unknown> | ServerWritableStream<GenerateRequest, unknown>,
  stream: boolean,
  body: (run: GrpcRun) => Promise<Result>,
): Promise<Result> {
  const { request, metadata } = call;
  const operation = request.prompt?.$case === "chat" ? "chat" : "text_completion";
  const headers = {
    traceparent: metadataText(metadata, "traceparent"),
    tracestate: metadataText(metadata, "tracestate"),
  };
  const span = new RequestSpan(operation, serving.servedModelName, headers);
  const open = serving.openRequests.start();
  call.once("cancelled", () => open.abort.abort(new ClientGoneError("the client cancelled")));
  try {
    const task = taskLabel(request.task === "" ? undefined : request.task, "task");
    const id = `gen-${randomUUID()}`;
    const requestId = request.requestId === "" ? id : request.requestId;
    if (requestId.length > MAX_REQUEST_ID) {
      const message = `request_id: ${requestId.length} characters, expected at most ${MAX_REQUEST_ID}`;
      throw new InvalidRequestError(message, "request_id");
    }
    const choice = planGenerate(serving, request);
    checkAvailable(serving);
    span.request({ id: requestId, sampling: choice.sampling, choices: 1, stream, task });
    const run = { id, task, abort: open.abort, traceContext: span.context };
    return await body({ choice, run, span, requestId });
  } catch (error) {
    span.fail(error);
    throw error;
  } finally {
    open.done();
  }
}

/** Writes a chunk and waits while the client's window is full. Throws the abort's reason, or ClientGoneError. */
async function write(
  call: ServerWritableStream<GenerateRequest, GenerateChunk>,
  chunk: GenerateChunk,
  { abort }: Run,
  unreadMs: number,
): Promise<void> {
  if (call.write(chunk)) return;
  const drained = Promise.withResolvers<void>();
  const onDrain = () => drained.resolve();
  const onAbort = () => drained.reject(abort.signal.reason);
  const timer = setTimeout(
    () => drained.reject(new ClientGoneError(`the client did not read for ${unreadMs} ms`)),
    unreadMs,
  );
  call.once("drain", onDrain);
  abort.signal.addEventListener("abort", onAbort, { once: true });
  try {
    await drained.promise;
  } finally {
    clearTimeout(timer);
    call.off("drain", onDrain);
    abort.signal.removeEventListener("abort", onAbort);
  }
}

function tokenize(serving: Serving, request: TokenizeRequest): TokenizeResponse {
  const tokenizer = requireTokenizer(serving, "text");
  const { text, addSpecialTokens } = request;
  return { tokenIds: encodeText(serving, tokenizer, text, "text", addSpecialTokens) };
}

function modelInfo(serving: Serving): GetModelInfoResponse {
  const { config } = serving;
  return {
    model: serving.servedModelName,
    modelType: config.modelType,
    maxModelLen: serving.engine.maxModelLen,
    vocabSize: config.vocabSize,
    numLayers: config.numLayers,
    numExperts: config.numExperts,
    numExpertsPerToken: config.numExpertsPerToken,
    numShards: serving.numShards(),
    hasTokenizer: serving.tokenizer !== undefined,
  };
}

function statusOf(serving: Serving, error: unknown): { code: number; details: string } {
  const door = doorError(error);
  if (door.httpStatus === 500) serving.log.error({ err: error }, "request failed");
  return { code: door.grpcStatus, details: door.message };
}

function metadataText(metadata: Metadata, key: string): string | undefined {
  const [value] = metadata.get(key);
  return typeof value === "string" ? value : undefined;
}
