/** Trace context as a W3C `traceparent` string, for messages that have no headers of their own. Needs no SDK. */

import {
  isSpanContextValid,
  ROOT_CONTEXT,
  trace,
  TraceFlags,
  type Context,
} from "@opentelemetry/api";

/** The `traceparent` of a context's span; empty where there is none or it is not sampled. */
export function traceparentOf(context: Context | undefined): string {
  const span = context === undefined ? undefined : trace.getSpanContext(context);
  if (span === undefined || !isSpanContextValid(span)) return "";
  if ((span.traceFlags & TraceFlags.SAMPLED) === 0) return "";
  return `00-${span.traceId}-${span.spanId}-01`;
}

/** The context that a `traceparent` stands for; undefined where it is empty, malformed or not sampled. */
export function contextOf(traceparent: string): Context | undefined {
  // A later version may say more after its flags; version ff is forbidden.
  const match = /^(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-|$)/.exec(
    traceparent,
  );
  if (match === null) return undefined;
  const [, traceId, spanId, flags] = match;
  const span = { traceId, spanId, traceFlags: Number.parseInt(flags, 16), isRemote: true };
  if (!isSpanContextValid(span) || (span.traceFlags & TraceFlags.SAMPLED) === 0) return undefined;
  return trace.setSpanContext(ROOT_CONTEXT, span);
}

/** Whether spans under this context are recorded. */
export function isSampled(context: Context | undefined): boolean {
  const span = context === undefined ? undefined : trace.getSpanContext(context);
  return span !== undefined && (span.traceFlags & TraceFlags.SAMPLED) !== 0;
}
