/** A small HTTP server that streams completions with known delays: what a load generator's clock is checked against. */

import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";

/** How the server answers; delays in milliseconds. */
export interface DelayedAnswers {
  readonly firstTokenMs: number;
  readonly gapMs: number;
  readonly numTokens: number;
  /** Answer of the n-th request, counted from 0, where it is not a stream of tokens. */
  readonly misbehave?: (
    n: number,
  ) => "refuse" | "error event" | "cut" | "no done" | "hang" | undefined;
}

/** The running server, and what it saw. */
export interface DelayedServer {
  readonly url: string;
  /** Bodies of the completion requests in the order of their arrival. */
  readonly bodies: Record<string, unknown>[];
  /** Arrival of each completion request, milliseconds of performance.now(). */
  readonly arrivals: number[];
  /** Most requests that were under way at once. */
  readonly peak: () => number;
  close(): Promise<void>;
}

async function readJson(request: IncomingMessage): Promise<Record<string, unknown>> {
  let text = "";
  for await (const bytes of request) text += String(bytes);
  return JSON.parse(text) as Record<string, unknown>;
}

/** Starts the server on a free port of 127.0.0.1. */
export async function startDelayedServer(answers: DelayedAnswers): Promise<DelayedServer> {
  const bodies: Record<string, unknown>[] = [];
  const arrivals: number[] = [];
  let active = 0;
  let peak = 0;

  async function stream(response: ServerResponse, body: Record<string, unknown>, n: number) {
    const behaviour = answers.misbehave?.(n);
    if (behaviour === "refuse") {
      response.writeHead(429, { "content-type": "application/json" });
      response.end(
        JSON.stringify({
          error: { message: "full", type: "overloaded", param: null, code: "queue_full" },
        }),
      );
      return;
    }
    response.writeHead(200, { "content-type": "text/event-stream" });
    const send = (chunk: unknown) => response.write(`data: ${JSON.stringify(chunk)}\n\n`);
    if (behaviour === "hang") return;
    response.write(": a comment\n\n");
    await sleep(answers.firstTokenMs);
    for (let token = 0; token < answers.numTokens; token++) {
      if (token > 0) await sleep(answers.gapMs);
      send({ choices: [{ index: 0, text: token === 1 ? "" : "é", token_ids: [token] }] });
      if (behaviour === "error event") {
        send({ error: { message: "a shard is gone", code: "unavailable" } });
        response.end();
        return;
      }
      if (behaviour === "cut") {
        response.destroy();
        return;
      }
    }
    const promptTokens = Array.isArray(body.prompt) ? body.prompt.length : 1;
    const usage = { prompt_tokens: promptTokens, completion_tokens: answers.numTokens };
    send({ choices: [{ index: 0, text: "", finish_reason: "length" }] });
    send({ choices: [], usage });
    response.end(behaviour === "no done" ? "" : "data: [DONE]\n\n");
  }

  const server = createServer((request, response) => {
    if (request.url === "/v1/models") {
      response.end(JSON.stringify({ data: [{ id: "delayed" }] }));
      return;
    }
    const n = arrivals.push(performance.now()) - 1;
    peak = Math.max(peak, ++active);
    response.on("close", () => active--);
    void readJson(request).then((body) => {
      bodies.push(body);
      return stream(response, body, n);
    });
  });
  await new Promise<void>((resolve) => {
    server.listen(0, "127.0.0.1", resolve);
  });
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    bodies,
    arrivals,
    peak: () => peak,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}
