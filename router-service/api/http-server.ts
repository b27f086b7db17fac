/** The HTTP door: routes, keys, limits, and OpenAI's shape for every error, whoever raises it. */

import { randomUUID } from "node:crypto";
import { STATUS_CODES } from "node:http";
import type { Socket } from "node:net";

import { fastify, type FastifyInstance, type FastifyReply, type FastifyRequest } from "fastify";

import packageJson from "../../package.json" with { type: "json" };
import { answerStream, answerWhole, type Plan } from "./answer.ts";
import {
  ClientGoneError,
  doorError,
  errorBody,
  NotFoundError,
  TransportError,
} from "./api-errors.ts";
import type { CheckApiKey } from "./api-key.ts";
import { planChat } from "./chat.ts";
import { planCompletions } from "./completions.ts";
import { modelCard, modelList } from "./models.ts";
import { placementView, planView } from "./placement.ts";
import { parseJson } from "./request-body.ts";
import { type Operation, RequestSpan } from "./request-span.ts";
import { checkAvailable, type Serving } from "./serving.ts";
import { drainShard, shardList } from "./shards.ts";
import { taskLabel } from "./task-label.ts";
import { detokenize, tokenize } from "./tokenize.ts";

/** What the HTTP door needs beside what it serves. */
export interface HttpDoor {
  readonly serving: Serving;
  readonly checkApiKey: CheckApiKey;
  /** Text of GET /metrics. */
  readonly metricsText: () => string | Promise<string>;
}

/** Asked by probes and scrapers, who have no key. */
const OPEN_ROUTES = new Set(["/health", "/ping", "/version", "/metrics"]);
const CONNECTION_STATUS: ReadonlyMap<string, number> = new Map([
  ["HPE_HEADER_OVERFLOW", 431],
  ["ERR_HTTP_REQUEST_TIMEOUT", 408],
]);
const DRAIN_ROUTE = "/v1/shards/:rank/drain";
const UPLOAD_MS = 60_000;
const REQUEST_ID = /^[\w.:-]{1,128}$/;

/** The HTTP server with all its routes, not listening yet. */
export function createHttpServer(door: HttpDoor): FastifyInstance {
  const { serving, checkApiKey } = door;
  const server = fastify({
    bodyLimit: serving.limits.bodyBytes,
    requestTimeout: UPLOAD_MS,
    genReqId: (request) => {
      const given = request.headers["x-request-id"];
      return typeof given === "string" && REQUEST_ID.test(given) ? given : randomUUID();
    },
    frameworkErrors: (error, _request, reply) => {
      void sendError(serving, reply, error);
    },
    clientErrorHandler: refuseConnection,
  });
  server.removeAllContentTypeParsers();
  server.addContentTypeParser("application/json", { parseAs: "buffer" }, (_request, body, done) => {
    try {
      done(null, parseJson(body as Buffer));
    } catch (error) {
      done(error as Error);
    }
  });
  server.addHook("onRequest", async (request, reply) => {
    void reply.header("x-request-id", request.id);
    const path = request.url.split("?", 1)[0];
    if (!OPEN_ROUTES.has(path)) checkApiKey(request.headers.authorization);
  });
  server.setErrorHandler((error, _request, reply) => sendError(serving, reply, error));
  const methods = collectMethods(server);
  server.setNotFoundHandler((request, reply) => {
    const path = request.url.split("?", 1)[0];
    const allowed =
      methods.get(path.replace(/^\/v1\/shards\/[^/]+\/drain$/, DRAIN_ROUTE)) ??
      (path.startsWith("/v1/models/") ? "GET, HEAD" : undefined);
    if (allowed === undefined) {
      const message = `${request.method} ${path.slice(0, 128)} does not exist`;
      return sendError(serving, reply, new NotFoundError(message, "route_not_found"));
    }
    const message = `${path.slice(0, 128)} takes ${allowed}, not ${request.method}`;
    void reply.header("allow", allowed);
    return sendError(serving, reply, new TransportError(405, message, "method_not_allowed"));
  });
  addRoutes(server, door);
  return server;
}

function addRoutes(server: FastifyInstance, { serving, metricsText }: HttpDoor): void {
  const generate =
    (operation: Operation, prefix: string, plan: Planner) =>
    (request: FastifyRequest, reply: FastifyReply) =>
      serveGeneration(serving, request, reply, { operation, prefix, plan });
  server.post("/v1/chat/completions", generate("chat", "chatcmpl", planChat));
  server.post("/v1/completions", generate("text_completion", "cmpl", planCompletions));
  server.get("/v1/models", () => modelList(serving));
  server.get("/v1/models/*", (request) =>
    modelCard(serving, (request.params as { "*": string })["*"]),
  );
  server.get("/v1/placement", () => placementView(serving));
  server.post("/v1/placement/plan", (request) => planView(serving, request.body));
  server.get("/v1/shards", () => shardList(serving));
  for (const [method, cancel] of [
    ["POST", false],
    ["DELETE", true],
  ] as const) {
    const handler = (request: FastifyRequest) =>
      drainShard(serving, (request.params as { rank: string }).rank, cancel);
    server.route({ method, url: DRAIN_ROUTE, handler });
  }
  server.post("/tokenize", (request) => tokenize(serving, request.body));
  server.post("/detokenize", (request) => detokenize(serving, request.body));
  for (const route of ["/health", "/ping"]) {
    server.get(route, () => {
      checkAvailable(serving);
      return { status: "ok" };
    });
  }
  server.get("/version", () => ({ version: packageJson.version }));
  server.get("/metrics", (_request, reply) => {
    void reply.type("text/plain; version=0.0.4; charset=utf-8");
    return metricsText();
  });
}

type Planner = (serving: Serving, body: unknown, id: string) => Plan | Promise<Plan>;

interface Endpoint {
  readonly operation: Operation;
  readonly prefix: string;
  readonly plan: Planner;
}

async function serveGeneration(
  serving: Serving,
  request: FastifyRequest,
  reply: FastifyReply,
  endpoint: Endpoint,
): Promise<object | undefined> {
  const id = `${endpoint.prefix}-${randomUUID()}`;
  const span = new RequestSpan(endpoint.operation, serving.servedModelName, request.headers);
  const open = serving.openRequests.start();
  // Comes when the whole answer is handed to the system, or when the client is gone.
  reply.raw.once("close", () => {
    if (!reply.raw.writableFinished) {
      open.abort.abort(new ClientGoneError("the client closed the connection"));
    }
    open.done();
  });
  try {
    const header = request.headers["x-switchyard-task"];
    const task = taskLabel(Array.isArray(header) ? header.join(", ") : header, "X-Switchyard-Task");
    const plan = await endpoint.plan(serving, request.body, id);
    checkAvailable(serving);
    const { choices, stream } = plan;
    span.request({ id, sampling: choices[0].sampling, choices: choices.length, stream, task });
    const run = { id, task, abort: open.abort, traceContext: span.context };
    if (!stream) return await answerWhole(serving, plan, run, span);
    await answerStream(serving, plan, run, span, reply.raw, () => {
      reply.hijack();
      return { "x-request-id": request.id };
    });
    return undefined;
  } catch (error) {
    span.fail(error);
    throw error;
  }
}

/** Our words for what the framework refuses. */
function ownError(serving: Serving, error: unknown): unknown {
  const { code, statusCode } = error as { code?: string; statusCode?: number };
  if (typeof code !== "string" || !code.startsWith("FST_") || statusCode === undefined)
    return error;
  if (code === "FST_ERR_CTP_BODY_TOO_LARGE") {
    const message = `the body is larger than the limit of ${serving.limits.bodyBytes} bytes`;
    return new TransportError(413, message, "body_too_large");
  }
  if (code === "FST_ERR_CTP_INVALID_MEDIA_TYPE") {
    const message = "the content type is not supported, expected application/json";
    return new TransportError(415, message, "unsupported_media_type");
  }
  if (statusCode >= 500) return error;
  return new TransportError(statusCode, (error as Error).message, "bad_request");
}

function sendError(serving: Serving, reply: FastifyReply, thrown: unknown): FastifyReply {
  const error = ownError(serving, thrown);
  const door = doorError(error);
  if (door.httpStatus === 500) {
    serving.log.error({ id: reply.request.id, err: error }, "request failed");
  }
  if (door.httpStatus === 401) void reply.header("www-authenticate", "Bearer");
  if (door.httpStatus === 429 || door.httpStatus === 503) void reply.header("retry-after", "1");
  return reply.code(door.httpStatus).type("application/json").send(errorBody(door));
}

/** Answers what is not even HTTP. */
function refuseConnection(error: NodeJS.ErrnoException, socket: Socket): void {
  if (error.code === "ECONNRESET" || !socket.writable) return;
  const status = CONNECTION_STATUS.get(error.code ?? "") ?? 400;
  const reason = STATUS_CODES[status] ?? "";
  const refusal = new TransportError(status, reason.toLowerCase(), "bad_http");
  const body = JSON.stringify(errorBody(doorError(refusal)));
  socket.end(
    `HTTP/1.1 ${status} ${reason}\r\nContent-Type: application/json\r\n` +
      `Content-Length: ${Buffer.byteLength(body)}\r\nConnection: close\r\n\r\n${body}`,
  );
}

/** Methods of each route as it is added, for the 405 answer. */
function collectMethods(server: FastifyInstance): ReadonlyMap<string, string> {
  const methods = new Map<string, string>();
  server.addHook("onRoute", ({ method, url }) => {
    const known = methods.get(url);
    const added = Array.isArray(method) ? method.join(", ") : method;
    methods.set(url, known === undefined ? added : `${known}, ${added}`);
  });
  return methods;
}
