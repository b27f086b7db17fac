import assert from "node:assert/strict";
import { after, beforeEach, test } from "node:test";

import { ROOT_CONTEXT, SpanKind, trace, type Context } from "@opentelemetry/api";

import { startTelemetry } from "../../../core/platform/telemetry.ts";
import { createRequestTracing } from "../../../router-service/api/request-tracing.ts";
import type {
  EngineObserver,
  Phase,
  RequestTimeline,
  StepReport,
} from "../../../router-service/engine/observer.ts";
import { spanTree, startOtlpCollector, type CollectedSpan } from "../../support/otlp-collector.ts";

const collector = await startOtlpCollector();
Object.assign(process.env, collector.env);
const log = { info: () => undefined, warn: () => undefined };
const telemetry = await startTelemetry("switchyard-router", log);
const tracer = trace.getTracer("test");

after(async () => {
  await telemetry.shutdown();
  await collector.close();
});

/** A request with a server span, and what the engine tells of it. */
function traced(id: string, observer: EngineObserver) {
  const arrivedAt = performance.now();
  const server = tracer.startSpan(`chat ${id}`, { kind: SpanKind.SERVER });
  const traceContext = trace.setSpan(ROOT_CONTEXT, server);
  let scheduledAt: number | undefined;
  let firstTokenAt: number | undefined;
  let lastTokenAt: number | undefined;
  const part = (phase: Phase) => {
    scheduledAt ??= performance.now();
    const numTokens = phase === "prefill" ? 8 : 1;
    return { requestId: id, task: "default", phase, numTokens, traceContext };
  };
  const token = () => {
    const now = performance.now();
    observer.onToken?.(id, lastTokenAt === undefined ? undefined : now - lastTokenAt);
    firstTokenAt ??= now;
    lastTokenAt = now;
  };
  const end = (outcome: RequestTimeline["outcome"]) => {
    observer.onRequest?.({
      id,
      task: "default",
      arrivedAt,
      scheduledAt,
      firstTokenAt,
      lastTokenAt,
      finishedAt: performance.now(),
      promptTokens: 8,
      lookedUpTokens: 8,
      cachedTokens: 0,
      completionTokens: 5,
      maxTokens: 5,
      outcome,
      traceContext,
    });
    server.end();
  };
  return { part, token, end, traceId: server.spanContext().traceId };
}

/** A step as the engine runs it, with one dispatch where the step is sampled. */
function runStep(observer: EngineObserver, sequences: StepReport["sequences"]): boolean {
  const startedAt = performance.now();
  const context: Context | undefined = observer.stepContext?.(sequences);
  if (context !== undefined) tracer.startSpan("dispatch", {}, context).end();
  const report = { startedAt, finishedAt: performance.now(), sequences, numTokens: 0 };
  observer.onStep?.({ ...report, routing: new Map() });
  return context !== undefined;
}

async function traceOf(traceId: string): Promise<CollectedSpan[]> {
  const isOurs = (span: CollectedSpan) => span.traceId === traceId;
  await collector.waitFor(`the server span of trace ${traceId}`, (spans) =>
    spans.some((span) => isOurs(span) && span.kind === 2),
  );
  return collector.spans.filter(isOurs);
}

let observer = createRequestTracing();
beforeEach(() => {
  observer = createRequestTracing(4);
});

test("a request's phases, steps and dispatches hang in one tree, in the order of their times", async () => {
  const request = traced("r1", observer);
  runStep(observer, [request.part("prefill")]);
  runStep(observer, [request.part("prefill")]);
  request.token();
  const sampled = Array.from({ length: 6 }, () => {
    const was = runStep(observer, [request.part("decode")]);
    request.token();
    return was;
  });
  request.end("length");
  assert.deepEqual(sampled, [true, false, false, false, true, false]);

  const spans = await traceOf(request.traceId);
  const step = ["    step (switchyard-router)", "      dispatch (switchyard-router)"];
  assert.equal(
    spanTree(spans),
    [
      "chat r1 (switchyard-router)",
      "  queue (switchyard-router)",
      "  prefill (switchyard-router)",
      ...step,
      ...step,
      "  decode (switchyard-router)",
      ...step,
      ...step,
    ].join("\n"),
  );
  const named = (name: string) => spans.find((span) => span.name === name)!;
  assert.equal(named("decode").attributes["gen_ai.usage.output_tokens"], 5);
  assert.equal(named("prefill").attributes["switchyard.prefill.tokens"], 16);
  for (const { startedAt, endedAt } of spans) assert.ok(startedAt <= endedAt);
  const millisecond = 1_000_000n;
  assert.ok(named("queue").endedAt <= named("prefill").startedAt + millisecond);
  assert.ok(named("prefill").endedAt <= named("decode").startedAt + millisecond);
});

test("a step of several requests is in the first one's trace and links to the others", async () => {
  const [one, other] = [traced("r1", observer), traced("r2", observer)];
  runStep(observer, [one.part("prefill"), other.part("prefill")]);
  one.end("stop");
  other.end("stop");
  const mine = await traceOf(one.traceId);
  const theirs = await traceOf(other.traceId);
  const step = mine.find(({ name }) => name === "step");
  const prefill = theirs.find(({ name }) => name === "prefill");
  assert.deepEqual(step?.links, [{ traceId: other.traceId, spanId: prefill?.spanId }]);
  assert.equal(step.attributes["switchyard.step.sequences"], 2);
  assert.equal(step.attributes["switchyard.step.tokens"], 16);
  assert.ok(theirs.every(({ name }) => name !== "step"));
});

test("a failed step and its request end as errors", async () => {
  const request = traced("r1", observer);
  observer.stepContext?.([request.part("prefill")]);
  request.end("error");
  const spans = await traceOf(request.traceId);
  const status = Object.fromEntries(spans.map(({ name, statusCode }) => [name, statusCode]));
  assert.deepEqual(status, { "chat r1": 0, queue: 0, prefill: 2, step: 2 });
});

test("a step that nobody wants any more ends at once, and is no error", async () => {
  const request = traced("r1", observer);
  observer.stepContext?.([request.part("prefill")]);
  request.end("abort");
  observer.onStepFailed?.({ finishedAt: performance.now(), aborted: true });
  const spans = await traceOf(request.traceId);
  const step = spans.find(({ name }) => name === "step");
  assert.deepEqual([step?.statusCode, step?.attributes["switchyard.step.aborted"]], [0, true]);
});

test("a request that leaves the queue unserved has a queue span only", async () => {
  const request = traced("r1", observer);
  request.end("abort");
  const names = (await traceOf(request.traceId)).map(({ name }) => name);
  assert.deepEqual(names.sort(), ["chat r1", "queue"]);
});

test("a preemption is an event of the phase it happened in", async () => {
  const request = traced("r1", observer);
  runStep(observer, [request.part("prefill")]);
  request.token();
  observer.onPreemption?.("r1");
  request.end("stop");
  const spans = await traceOf(request.traceId);
  assert.deepEqual(spans.find(({ name }) => name === "decode")?.events, ["preempted"]);
});

test("requests without a sampled server span are not looked at", () => {
  const sequence = { requestId: "r1", task: "default", phase: "prefill" as const, numTokens: 1 };
  const unsampled = trace.setSpanContext(ROOT_CONTEXT, {
    traceId: "0af7651916cd43dd8448eb211c80319c",
    spanId: "b7ad6b7169203331",
    traceFlags: 0,
  });
  assert.equal(observer.stepContext?.([sequence]), undefined);
  assert.equal(observer.stepContext?.([{ ...sequence, traceContext: unsampled }]), undefined);
});
