import assert from "node:assert/strict";
import { after, before, beforeEach, test } from "node:test";

import { context, propagation, SpanKind, SpanStatusCode, trace } from "@opentelemetry/api";
import { core, tracing } from "@opentelemetry/sdk-node";
import { credentials, Metadata } from "@grpc/grpc-js";

import {
  GenerateRequest,
  InferenceServiceClient,
} from "../../../proto/gen/switchyard/v1/inference.ts";
import { UnavailableError } from "../../../router-service/engine/errors.ts";
import type { EngineRequest } from "../../../router-service/engine/request.ts";
import { waitFor } from "../../../bench/rig/wait-for.ts";
import { type Doors, openDoors } from "./doors.ts";

const TRACE_ID = "0af7651916cd43dd8448eb211c80319c";
const TRACEPARENT = `00-${TRACE_ID}-b7ad6b7169203331-01`;

const exporter = new tracing.InMemorySpanExporter();
const provider = new tracing.BasicTracerProvider({
  spanProcessors: [new tracing.SimpleSpanProcessor(exporter)],
});
let doors: Doors;
/** What every step fails with. */
let lost: Error | undefined;
/** What the engine was handed. */
const submitted: EngineRequest[] = [];

before(async () => {
  doors = await openDoors({
    toy: {
      beforeStep: () => {
        if (lost !== undefined) throw lost;
      },
    },
  });
  const { engine } = doors;
  const submit = engine.submit.bind(engine);
  engine.submit = (request) => {
    submitted.push(request);
    return submit(request);
  };
  const headers = { traceparent: TRACEPARENT };
  await doors.post("/v1/completions", { prompt: [1], max_tokens: 1 }, headers);
  assert.equal(submitted[0].traceContext, undefined, "without an SDK nothing is carried");
  trace.setGlobalTracerProvider(provider);
  propagation.setGlobalPropagator(new core.W3CTraceContextPropagator());
});
beforeEach(() => {
  exporter.reset();
  submitted.length = 0;
});
after(async () => {
  await doors.close();
  await provider.shutdown();
  trace.disable();
  propagation.disable();
  context.disable();
});

async function theSpan(): Promise<tracing.ReadableSpan> {
  const spans = await waitFor("a span", () => {
    const finished = exporter.getFinishedSpans();
    return finished.length > 0 && finished;
  });
  assert.equal(spans.length, 1);
  return spans[0];
}

for (const stream of [false, true]) {
  const kind = stream ? "streamed" : "whole";
  test(`a ${kind} chat has a server span in the caller's trace with gen_ai attributes`, async () => {
    const body = {
      messages: [{ role: "user", content: "hi" }],
      max_tokens: 5,
      temperature: 0.5,
      seed: 3,
      stop: ["zzzz"],
      stream,
    };
    const headers = { traceparent: TRACEPARENT, "x-switchyard-task": "math" };
    assert.equal((await doors.post("/v1/chat/completions", body, headers)).status, 200);
    const span = await theSpan();
    assert.equal(span.name, "chat demo");
    assert.equal(span.kind, SpanKind.SERVER);
    assert.equal(span.spanContext().traceId, TRACE_ID);
    assert.equal(span.parentSpanContext?.spanId, "b7ad6b7169203331");
    const { attributes } = span;
    assert.equal(attributes["gen_ai.operation.name"], "chat");
    assert.equal(attributes["gen_ai.request.model"], "demo");
    assert.equal(attributes["gen_ai.request.max_tokens"], 5);
    assert.equal(attributes["gen_ai.request.temperature"], 0.5);
    assert.equal(attributes["gen_ai.request.seed"], 3);
    assert.deepEqual(attributes["gen_ai.request.stop_sequences"], ["zzzz"]);
    assert.equal(attributes["gen_ai.usage.output_tokens"], 5);
    assert.ok(Number(attributes["gen_ai.usage.input_tokens"]) > 5);
    assert.deepEqual(attributes["gen_ai.response.finish_reasons"], ["length"]);
    assert.equal(attributes["switchyard.task"], "math");
    assert.equal(span.status.code, SpanStatusCode.UNSET);
    const [{ traceContext, task }] = submitted;
    assert.equal(task, "math");
    assert.ok(traceContext);
    assert.equal(trace.getSpanContext(traceContext)?.spanId, span.spanContext().spanId);
  });
}

test("a gRPC call's traceparent comes as metadata", async () => {
  const client = new InferenceServiceClient(doors.grpcAddress, credentials.createInsecure());
  const metadata = new Metadata();
  metadata.set("traceparent", TRACEPARENT);
  const request: GenerateRequest = {
    ...GenerateRequest.decode(new Uint8Array()),
    prompt: { $case: "tokenIds", value: { ids: [1, 2] } },
    task: "code",
  };
  try {
    await new Promise<void>((resolve, reject) => {
      client.generate(request, metadata, (error) => {
        if (error) reject(error);
        else resolve();
      });
    });
    const span = await theSpan();
    assert.equal(span.name, "text_completion demo");
    assert.equal(span.spanContext().traceId, TRACE_ID);
    assert.equal(span.attributes["switchyard.task"], "code");
  } finally {
    client.close();
  }
});

test("a refused request's span says why, and only the server's own failures are errors", async () => {
  await doors.post("/v1/completions", { prompt: [1], temperature: 9 });
  const refused = await theSpan();
  assert.equal(refused.attributes["error.type"], "400");
  assert.equal(refused.status.code, SpanStatusCode.UNSET);
  exporter.reset();
  lost = new UnavailableError("shard 0 was lost");
  const { status } = await doors.post("/v1/completions", { prompt: [1, 2], max_tokens: 200 });
  lost = undefined;
  assert.equal(status, 503);
  const failed = await theSpan();
  assert.equal(failed.attributes["error.type"], "unavailable");
  assert.equal(failed.status.code, SpanStatusCode.ERROR);
  assert.equal(failed.events[0].name, "exception");
});
