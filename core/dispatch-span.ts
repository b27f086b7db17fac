/** A dispatch in a request's trace: the router's span of it, and the shard's under that. */

import { SpanKind, SpanStatusCode, trace, type Attributes, type Context } from "@opentelemetry/api";

import { traceparentOf } from "./platform/trace-context.ts";
import type { ShardTimes } from "./wire.ts";

/** Tracer, name and kind of each end's span. */
const ENDS = {
  router: { tracer: "switchyard.router-service", name: "moe.dispatch", kind: SpanKind.CLIENT },
  shard: { tracer: "switchyard.expert-service", name: "moe.experts", kind: SpanKind.SERVER },
} as const;

/** What is dispatched, and where to. */
export interface DispatchFacts {
  readonly layer: number;
  readonly rank: number;
  readonly rows: number;
  readonly epoch: number;
}

/** How it went. */
export interface DispatchResult {
  /** Of both directions. */
  readonly bytes?: number;
  readonly times?: ShardTimes;
}

/** A dispatch's span; one of the functions ends it. */
export interface DispatchSpan {
  /** W3C trace context of what happens under it. */
  readonly traceparent: string;
  end(result: DispatchResult): void;
  fail(message: string): void;
}

/** Starts one end's span of a dispatch; undefined where the step is not sampled. */
export function startDispatchSpan(
  end: keyof typeof ENDS,
  parent: Context | undefined,
  { layer, rank, rows, epoch }: DispatchFacts,
): DispatchSpan | undefined {
  if (parent === undefined) return undefined;
  const { tracer, name, kind } = ENDS[end];
  const attributes = {
    "moe.layer": layer,
    "moe.shard.rank": rank,
    "moe.rows": rows,
    "moe.placement.epoch": epoch,
  };
  const span = trace.getTracer(tracer).startSpan(name, { kind, attributes }, parent);
  if (!span.isRecording()) return undefined;
  return {
    traceparent: traceparentOf(trace.setSpan(parent, span)),
    end: (result) => {
      span.setAttributes(attributesOf(result));
      span.end();
    },
    fail: (message) => {
      span.setStatus({ code: SpanStatusCode.ERROR, message });
      span.end();
    },
  };
}

function attributesOf({ bytes, times }: DispatchResult): Attributes {
  return {
    ...(bytes === undefined ? {} : { "moe.dispatch.bytes": bytes }),
    ...(times === undefined
      ? {}
      : {
          "moe.queue.seconds": times.queueUs / 1e6,
          "moe.compute.seconds": times.computeUs / 1e6,
        }),
  };
}
