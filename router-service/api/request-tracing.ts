/** A request's life as spans below its server span: queue, prefill, decode, and under those the sampled steps. */

import { SpanStatusCode, trace, type Context, type Link, type Span } from "@opentelemetry/api";

import { isSampled } from "../../core/platform/trace-context.ts";
import type { EngineObserver, RequestTimeline, StepSequence } from "../engine/observer.ts";

/** Of a request's decode steps, one in this many has spans for its dispatches. */
const TRACE_DECODE_EVERY = 16;

/** Requests with open spans at most; one more gets no spans of its steps. */
const MAX_TRACED_REQUESTS = 4_096;

/** A sampled request that the engine works on. */
interface TracedRequest {
  /** Context of its server span. */
  readonly server: Context;
  readonly prefill: Span;
  decode?: Span;
  /** Tokens computed before the first one came out: the prompt's less those in the prefix cache. */
  prefillTokens: number;
  decodeSteps: number;
}

/** A step with a span of its own. */
interface TracedStep {
  readonly span: Span;
  /** The request in whose trace it is. */
  readonly requestId: string;
}

/**
 * Records sampled requests. Every prefill step and every `decodeEvery`th decode step of a request, from the first on,
 * gets a span `step` from which the step's dispatches hang. A step serves many requests: its span is in the trace of
 * the first one that samples it, with links to the others.
 */
export function createRequestTracing(decodeEvery = TRACE_DECODE_EVERY): EngineObserver {
  const tracer = trace.getTracer("switchyard.engine");
  const requests = new Map<string, TracedRequest>();
  let step: TracedStep | undefined;

  const endStep = (endedAt: number, how: "done" | "failed" | "aborted") => {
    if (how === "failed") step?.span.setStatus({ code: SpanStatusCode.ERROR });
    if (how === "aborted") step?.span.setAttribute("switchyard.step.aborted", true);
    step?.span.end(endedAt);
    step = undefined;
  };

  const requestOf = ({ requestId, traceContext }: StepSequence): TracedRequest | undefined => {
    if (traceContext === undefined || !isSampled(traceContext)) return undefined;
    const known = requests.get(requestId);
    if (known !== undefined || requests.size >= MAX_TRACED_REQUESTS) return known;
    const prefill = tracer.startSpan("prefill", { startTime: performance.now() }, traceContext);
    const request = { server: traceContext, prefill, prefillTokens: 0, decodeSteps: 0 };
    requests.set(requestId, request);
    return request;
  };

  function stepContext(sequences: readonly StepSequence[]): Context | undefined {
    if (step !== undefined) endStep(performance.now(), "failed");
    let requestId: string | undefined;
    let parent: Context | undefined;
    const links: Link[] = [];
    for (const sequence of sequences) {
      const request = requestOf(sequence);
      if (request === undefined) continue;
      if (sequence.phase === "decode" && request.decodeSteps++ % decodeEvery !== 0) continue;
      if (request.decode === undefined) request.prefillTokens += sequence.numTokens;
      const phase = request.decode ?? request.prefill;
      if (parent === undefined) {
        requestId = sequence.requestId;
        parent = trace.setSpan(request.server, phase);
      } else {
        links.push({ context: phase.spanContext() });
      }
    }
    if (parent === undefined || requestId === undefined) return undefined;
    const attributes = {
      "switchyard.step.sequences": sequences.length,
      "switchyard.step.tokens": sequences.reduce((sum, one) => sum + one.numTokens, 0),
    };
    const options = { startTime: performance.now(), attributes, links };
    step = { span: tracer.startSpan("step", options, parent), requestId };
    return trace.setSpan(parent, step.span);
  }

  function onToken(requestId: string, gapMs: number | undefined): void {
    const request = gapMs === undefined ? requests.get(requestId) : undefined;
    if (request === undefined || request.decode !== undefined) return;
    const now = performance.now();
    request.prefill.setAttribute("switchyard.prefill.tokens", request.prefillTokens);
    request.prefill.end(now);
    request.decode = tracer.startSpan("decode", { startTime: now }, request.server);
  }

  function onRequest(timeline: RequestTimeline): void {
    const { id, traceContext, arrivedAt, scheduledAt, lastTokenAt, finishedAt } = timeline;
    const failed = timeline.outcome === "error";
    if (failed && step?.requestId === id) endStep(finishedAt, "failed");
    const request = requests.get(id);
    requests.delete(id);
    if (traceContext === undefined || !isSampled(traceContext)) return;
    const queue = tracer.startSpan("queue", { startTime: arrivedAt }, traceContext);
    queue.end(scheduledAt ?? finishedAt);
    if (request === undefined) return;
    const { prefill, decode } = request;
    decode?.setAttribute("gen_ai.usage.output_tokens", timeline.completionTokens);
    const last = decode ?? prefill;
    last.setAttribute("switchyard.outcome", timeline.outcome);
    if (failed) last.setStatus({ code: SpanStatusCode.ERROR });
    last.end(failed ? finishedAt : (lastTokenAt ?? finishedAt));
  }

  return {
    stepContext,
    onStep: ({ finishedAt }) => endStep(finishedAt, "done"),
    onStepFailed: ({ finishedAt, aborted }) => endStep(finishedAt, aborted ? "aborted" : "failed"),
    onToken,
    onPreemption: (requestId) => {
      const request = requests.get(requestId);
      (request?.decode ?? request?.prefill)?.addEvent("preempted");
    },
    onRequest,
  };
}
