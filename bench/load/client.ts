/** Sends one streaming request over the OpenAI HTTP API and times what comes back. */

import type { Prompt } from "./dataset.ts";
import { readEvents } from "./event-stream.ts";
import type { RequestRecord } from "./statistics.ts";

/** Which server is asked, and how. */
export interface Target {
  /** Scheme, host and port, no path. */
  readonly baseUrl: string;
  /** Completions take token ids or text; chat takes text as the user's message. */
  readonly endpoint: "completions" | "chat";
  readonly model: string;
  readonly apiKey?: string;
  /** Label of the requests' kind in the routing statistics. */
  readonly task?: string;
  /** Further fields of the request body, as `temperature` or `ignore_eos`. */
  readonly extraBody: Readonly<Record<string, unknown>>;
  readonly outputTokens: number;
  /** Deadline of one request, milliseconds. */
  readonly timeoutMs: number;
}

/** The parts of a streamed chunk that are read here. */
interface Chunk {
  readonly choices?: readonly {
    readonly text?: string | null;
    readonly delta?: { readonly content?: string | null };
    readonly token_ids?: readonly number[] | null;
  }[];
  readonly usage?: { readonly prompt_tokens: number; readonly completion_tokens: number } | null;
  readonly error?: { readonly message?: string; readonly code?: string | number | null };
}

/** Answers so far: the times at which tokens came, and the server's count of them. */
interface Timeline {
  firstAt: number | undefined;
  lastAt: number;
  readonly gaps: number[];
  usage: Chunk["usage"];
}

/** A server's refusal or a broken answer, in words that group. */
class RequestError extends Error {
  override readonly name = "RequestError";
}

function requestBody(target: Target, prompt: Prompt): Record<string, unknown> {
  const common = {
    model: target.model,
    max_tokens: target.outputTokens,
    stream: true,
    stream_options: { include_usage: true },
    ...target.extraBody,
  };
  if (target.endpoint === "completions") return { ...common, prompt };
  if (typeof prompt !== "string") throw new Error("the chat endpoint takes text, not token ids");
  return { ...common, messages: [{ role: "user", content: prompt }] };
}

function requestHeaders(apiKey: string | undefined, task?: string): Record<string, string> {
  return {
    "content-type": "application/json",
    ...(apiKey === undefined ? {} : { authorization: `Bearer ${apiKey}` }),
    ...(task === undefined ? {} : { "x-switchyard-task": task }),
  };
}

/** Whether a chunk brings tokens: text, or ids where the server returns them (a token may have no text of its own). */
function bringsTokens(chunk: Chunk): boolean {
  const choice = chunk.choices?.[0];
  if (!choice) return false;
  return Boolean(choice.text || choice.delta?.content || choice.token_ids?.length);
}

function readChunk(data: string, at: number, timeline: Timeline): void {
  const chunk = JSON.parse(data) as Chunk;
  if (chunk.error)
    throw new RequestError(`error event: ${chunk.error.code ?? chunk.error.message}`);
  if (bringsTokens(chunk)) {
    if (timeline.firstAt === undefined) timeline.firstAt = at;
    else timeline.gaps.push(at - timeline.lastAt);
    timeline.lastAt = at;
  }
  if (chunk.usage) timeline.usage = chunk.usage;
}

async function stream(target: Target, prompt: Prompt, startedAt: number): Promise<RequestRecord> {
  const path = target.endpoint === "chat" ? "/v1/chat/completions" : "/v1/completions";
  const response = await fetch(target.baseUrl + path, {
    method: "POST",
    headers: requestHeaders(target.apiKey, target.task),
    body: JSON.stringify(requestBody(target, prompt)),
    signal: AbortSignal.timeout(target.timeoutMs),
  });
  if (!response.ok || !response.body) {
    const text = await response.text();
    throw new RequestError(`HTTP ${response.status}${errorCode(text)}`);
  }
  const timeline: Timeline = { firstAt: undefined, lastAt: 0, gaps: [], usage: null };
  let done = false;
  for await (const data of readEvents(response.body)) {
    if (data === "[DONE]") done = true;
    else readChunk(data, performance.now(), timeline);
  }
  if (!done) throw new RequestError("the stream ended without [DONE]");
  if (timeline.firstAt === undefined) throw new RequestError("the answer has no token");
  if (!timeline.usage) throw new RequestError("the answer has no usage");
  return {
    kind: "completed",
    promptTokens: timeline.usage.prompt_tokens,
    outputTokens: timeline.usage.completion_tokens,
    ttftMs: timeline.firstAt - startedAt,
    itlMs: timeline.gaps,
    e2elMs: timeline.lastAt - startedAt,
  };
}

/** The code of an error body in OpenAI's shape, with a space before it; empty where there is none. */
function errorCode(body: string): string {
  try {
    const code = (JSON.parse(body) as Chunk).error?.code;
    return typeof code === "string" ? ` ${code}` : "";
  } catch {
    return "";
  }
}

/** Why a request failed, in words that group: no ports, ids or times. */
function failureReason(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  if (error.name === "TimeoutError") return "no answer within the request's deadline";
  const { cause } = error;
  if (cause instanceof Error && "code" in cause) return String(cause.code);
  return cause instanceof Error ? cause.message : error.message;
}

/** Sends the prompt and reads the answer to its end; never throws: what goes wrong is a failed record. */
export async function sendRequest(target: Target, prompt: Prompt): Promise<RequestRecord> {
  try {
    return await stream(target, prompt, performance.now());
  } catch (error) {
    return { kind: "failed", reason: failureReason(error) };
  }
}

/** Deadline of a request that is not measured, milliseconds. */
const SETUP_TIMEOUT_MS = 30_000;

/** Name of the first model that a server serves. Throws where it can not be had. */
export async function firstServedModel(baseUrl: string, apiKey?: string): Promise<string> {
  const url = new URL("/v1/models", baseUrl);
  const response = await fetch(url, {
    headers: requestHeaders(apiKey),
    signal: AbortSignal.timeout(SETUP_TIMEOUT_MS),
  }).catch((error: unknown) => {
    throw new Error(`${url.href}: ${failureReason(error)}`, { cause: error });
  });
  if (!response.ok)
    throw new Error(`${url.href}: HTTP ${response.status} ${await response.text()}`);
  const { data } = (await response.json()) as { data: { id: string }[] };
  if (data.length === 0) throw new Error(`${baseUrl} serves no model`);
  return data[0].id;
}
