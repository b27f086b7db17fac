import assert from "node:assert/strict";
import { test } from "node:test";

import { ROOT_CONTEXT, trace } from "@opentelemetry/api";
import fc from "fast-check";

import { contextOf, isSampled, traceparentOf } from "../../../core/platform/trace-context.ts";

const hex = (length: number) =>
  fc
    .uint8Array({ minLength: length / 2, maxLength: length / 2 })
    .filter((bytes) => bytes.some((byte) => byte !== 0))
    .map((bytes) => Buffer.from(bytes).toString("hex"));

test("a sampled context survives its string", () => {
  fc.assert(
    fc.property(hex(32), hex(16), (traceId, spanId) => {
      const traceparent = `00-${traceId}-${spanId}-01`;
      const context = contextOf(traceparent);
      const span = trace.getSpanContext(context!);
      assert.deepEqual([span?.traceId, span?.spanId, span?.isRemote], [traceId, spanId, true]);
      assert.equal(traceparentOf(context), traceparent);
      assert.ok(isSampled(context));
    }),
  );
});

test("any other string is no context, and never throws", () => {
  const id = "0af7651916cd43dd8448eb211c80319c";
  const malformed = [
    "",
    `00-${id}-b7ad6b7169203331-00`,
    `ff-${id}-b7ad6b7169203331-01`,
    `00-${"0".repeat(32)}-b7ad6b7169203331-01`,
    `00-${id}-${"0".repeat(16)}-01`,
    `00-${id.toUpperCase()}-b7ad6b7169203331-01`,
    `00-${id}-b7ad6b7169203331-011`,
    `x00-${id}-b7ad6b7169203331-01`,
  ];
  for (const text of malformed) assert.equal(contextOf(text), undefined, text);
  assert.ok(contextOf(`01-${id}-b7ad6b7169203331-01-more`));
  fc.assert(fc.property(fc.string(), (text) => contextOf(text) === undefined));
});

test("no context, no span and an unsampled span have no string", () => {
  assert.equal(traceparentOf(undefined), "");
  assert.equal(traceparentOf(ROOT_CONTEXT), "");
  const span = {
    traceId: "0af7651916cd43dd8448eb211c80319c",
    spanId: "b7ad6b7169203331",
    traceFlags: 0,
  };
  const unsampled = trace.setSpanContext(ROOT_CONTEXT, span);
  assert.equal(traceparentOf(unsampled), "");
  assert.equal(isSampled(unsampled), false);
});
