/** The router's part of a dispatch's trace, and how the shard's part finds it. */

import { SpanKind, SpanStatusCode, trace, type Attributes, type Context } from "@opentelemetry/api";

import { traceparentOf } from "../../core/platform/trace-context.ts";

/** A dispatch's span; one of the functions ends it. */
export interface DispatchSpan {
  /** W3C trace context for the shard. */
  readonly traceparent: string;
  end(attributes: Attributes): void;
  fail(message: string): void;
}

/** Starts the span of one shard's dispatch; undefined where the step is not sampled. */
export function startDispatchSpan(
  parent: Context | undefined,
  attributes: Attributes,
): DispatchSpan | undefined {
  if (parent === undefined) return undefined;
  const span = trace
    .getTracer("switchyard.router-service")
    .startSpan("moe.dispatch", { kind: SpanKind.CLIENT, attributes }, parent);
  if (!span.isRecording()) return undefined;
  return {
    traceparent: traceparentOf(trace.setSpan(parent, span)),
    end: (more) => {
      span.setAttributes(more);
      span.end();
    },
    fail: (message) => {
      span.setStatus({ code: SpanStatusCode.ERROR, message });
      span.end();
    },
  };
}
