/** An OTLP collector for tests: receives traces over HTTP as JSON and answers what spans there are. */

import { createServer } from "node:http";
import type { AddressInfo } from "node:net";

import { waitFor } from "../../bench/rig/wait-for.ts";

/** A received span. */
export interface CollectedSpan {
  readonly traceId: string;
  readonly spanId: string;
  /** Absent for a root. */
  readonly parentSpanId?: string;
  readonly name: string;
  /** SpanKind of OTLP: 1 internal, 2 server, 3 client. */
  readonly kind: number;
  /** service.name of the process that made it. */
  readonly service: string;
  readonly attributes: Readonly<Record<string, unknown>>;
  /** Nanoseconds since 1970. */
  readonly startedAt: bigint;
  readonly endedAt: bigint;
  /** 0 unset, 1 ok, 2 error. */
  readonly statusCode: number;
  readonly links: readonly { readonly traceId: string; readonly spanId: string }[];
  readonly events: readonly string[];
}

/** A running collector. */
export interface OtlpCollector {
  /** What turns traces on in a process, and sends them here soon after a span ends. */
  readonly env: Readonly<Record<string, string>>;
  readonly spans: readonly CollectedSpan[];
  /** Waits until the spans are as wanted. Rejects after `timeoutMs`, listing the spans that came. */
  waitFor(
    what: string,
    condition: (spans: readonly CollectedSpan[]) => boolean,
    timeoutMs?: number,
  ): Promise<readonly CollectedSpan[]>;
  close(): Promise<void>;
}

interface OtlpValue {
  readonly stringValue?: string;
  readonly intValue?: string | number;
  readonly doubleValue?: number;
  readonly boolValue?: boolean;
  readonly arrayValue?: { readonly values?: readonly OtlpValue[] };
}

type OtlpAttributes = readonly { readonly key: string; readonly value: OtlpValue }[];

interface OtlpTraces {
  readonly resourceSpans: readonly {
    readonly resource?: { readonly attributes?: OtlpAttributes };
    readonly scopeSpans: readonly {
      readonly spans: readonly {
        readonly traceId: string;
        readonly spanId: string;
        readonly parentSpanId?: string;
        readonly name: string;
        readonly kind: number;
        readonly startTimeUnixNano: string;
        readonly endTimeUnixNano: string;
        readonly attributes?: OtlpAttributes;
        readonly status?: { readonly code?: number };
        readonly links?: readonly { readonly traceId: string; readonly spanId: string }[];
        readonly events?: readonly { readonly name: string }[];
      }[];
    }[];
  }[];
}

/** Starts a collector on a free port of 127.0.0.1. */
export async function startOtlpCollector(): Promise<OtlpCollector> {
  const spans: CollectedSpan[] = [];
  const server = createServer((request, response) => {
    const chunks: Buffer[] = [];
    request.on("data", (chunk: Buffer) => chunks.push(chunk));
    request.on("end", () => {
      const body = Buffer.concat(chunks).toString();
      if (request.url === "/v1/traces") spans.push(...parseTraces(JSON.parse(body) as OtlpTraces));
      response.writeHead(200, { "content-type": "application/json" }).end("{}");
    });
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  return {
    spans,
    env: {
      OTEL_EXPORTER_OTLP_ENDPOINT: `http://127.0.0.1:${port}`,
      OTEL_EXPORTER_OTLP_PROTOCOL: "http/json",
      OTEL_BSP_SCHEDULE_DELAY: "50",
    },
    waitFor: async (what, condition, timeoutMs = 10_000) => {
      try {
        await waitFor(what, () => condition(spans), timeoutMs);
      } catch (cause) {
        throw new Error(`no ${what} within ${timeoutMs} ms; spans:\n${spanTree(spans)}`, { cause });
      }
      return spans;
    },
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

/** Spans as an indented tree, one line each: for messages, and to compare shapes. */
export function spanTree(spans: readonly CollectedSpan[]): string {
  const known = new Set(spans.map(({ spanId }) => spanId));
  const lines: string[] = [];
  const visit = (span: CollectedSpan, depth: number) => {
    lines.push(`${"  ".repeat(depth)}${span.name} (${span.service})`);
    for (const child of inOrder(spans.filter((one) => one.parentSpanId === span.spanId))) {
      visit(child, depth + 1);
    }
  };
  const roots = spans.filter(
    ({ parentSpanId }) => parentSpanId === undefined || !known.has(parentSpanId),
  );
  for (const root of inOrder(roots)) visit(root, 0);
  return lines.join("\n");
}

function inOrder(spans: readonly CollectedSpan[]): CollectedSpan[] {
  return spans.toSorted((a, b) => Number(a.startedAt - b.startedAt));
}

function parseTraces({ resourceSpans }: OtlpTraces): CollectedSpan[] {
  return resourceSpans.flatMap(({ resource, scopeSpans }) => {
    const service = String(parseAttributes(resource?.attributes)["service.name"]);
    return scopeSpans
      .flatMap((scope) => scope.spans)
      .map((span) => ({
        traceId: span.traceId,
        spanId: span.spanId,
        parentSpanId: span.parentSpanId === "" ? undefined : span.parentSpanId,
        name: span.name,
        kind: span.kind,
        service,
        attributes: parseAttributes(span.attributes),
        startedAt: BigInt(span.startTimeUnixNano),
        endedAt: BigInt(span.endTimeUnixNano),
        statusCode: span.status?.code ?? 0,
        links: (span.links ?? []).map(({ traceId, spanId }) => ({ traceId, spanId })),
        events: (span.events ?? []).map(({ name }) => name),
      }));
  });
}

function parseAttributes(attributes: OtlpAttributes = []): Record<string, unknown> {
  return Object.fromEntries(attributes.map(({ key, value }) => [key, parseValue(value)]));
}

function parseValue(value: OtlpValue): unknown {
  if (value.arrayValue !== undefined) return (value.arrayValue.values ?? []).map(parseValue);
  if (value.intValue !== undefined) return Number(value.intValue);
  return value.stringValue ?? value.doubleValue ?? value.boolValue;
}
