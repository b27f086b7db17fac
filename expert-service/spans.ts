/** The shard's part of a request's trace. */

import { SpanKind, SpanStatusCode, trace } from "@opentelemetry/api";

import { contextOf } from "../core/platform/trace-context.ts";
import type { ShardTimes } from "../core/wire.ts";
import type { Dispatch } from "../proto/gen/switchyard/v1/expert.ts";

/** A dispatch's span; one of the functions ends it. */
export interface DispatchSpan {
  end(times: ShardTimes): void;
  fail(message: string): void;
}

/** Starts the span of a dispatch as a child of the router's; undefined where the dispatch is not sampled. */
export function startDispatchSpan(dispatch: Dispatch, rank: number): DispatchSpan | undefined {
  const parent = contextOf(dispatch.traceparent);
  if (parent === undefined) return undefined;
  const span = trace.getTracer("switchyard.expert-service").startSpan(
    "moe.experts",
    {
      kind: SpanKind.SERVER,
      attributes: {
        "moe.layer": dispatch.layer,
        "moe.shard.rank": rank,
        "moe.rows": dispatch.numRows,
        "moe.placement.epoch": dispatch.epoch,
      },
    },
    parent,
  );
  return {
    end: ({ queueUs, computeUs }) => {
      span.setAttributes({
        "moe.queue.seconds": queueUs / 1e6,
        "moe.compute.seconds": computeUs / 1e6,
      });
      span.end();
    },
    fail: (message) => {
      span.setStatus({ code: SpanStatusCode.ERROR, message });
      span.end();
    },
  };
}
