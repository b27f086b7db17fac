/** The server span of one generation request, with the gen_ai.* attributes; without an SDK it costs next to nothing. */

import {
  isSpanContextValid,
  propagation,
  ROOT_CONTEXT,
  type Context,
  type Span,
  SpanKind,
  SpanStatusCode,
  trace,
} from "@opentelemetry/api";

import type { SamplingParams } from "../engine/request.ts";
import { doorError } from "./api-errors.ts";
import type { UsageCount } from "./choices.ts";

/** `chat` and `text_completion` of the semantic conventions. */
export type Operation = "chat" | "text_completion";

const tracer = trace.getTracer("switchyard.api");

/** The span of one request from its arrival to the last byte of its answer. */
export class RequestSpan {
  readonly #span: Span;
  readonly #startedAt = performance.now();
  #sawText = false;
  /** Hands the span to the engine; undefined where nothing records traces. */
  readonly context: Context | undefined;

  /** `headers` may carry a W3C traceparent. */
  constructor(operation: Operation, model: string, headers: Readonly<Record<string, unknown>>) {
    const parent = propagation.extract(ROOT_CONTEXT, headers);
    const attributes = {
      "gen_ai.operation.name": operation,
      "gen_ai.provider.name": "switchyard",
      "gen_ai.request.model": model,
    };
    this.#span = tracer.startSpan(
      `${operation} ${model}`,
      { kind: SpanKind.SERVER, attributes },
      parent,
    );
    const recorded = isSpanContextValid(this.#span.spanContext());
    this.context = recorded ? trace.setSpan(parent, this.#span) : undefined;
  }

  /** What was asked for. */
  request(facts: {
    id: string;
    sampling: SamplingParams;
    choices: number;
    stream: boolean;
    task: string;
  }): void {
    if (!this.#span.isRecording()) return;
    const { sampling } = facts;
    this.#span.setAttributes({
      "gen_ai.response.id": facts.id,
      "gen_ai.request.max_tokens": sampling.maxTokens,
      "gen_ai.request.temperature": sampling.temperature,
      "gen_ai.request.top_p": sampling.topP,
      "gen_ai.request.top_k": sampling.topK,
      "gen_ai.request.frequency_penalty": sampling.frequencyPenalty,
      "gen_ai.request.presence_penalty": sampling.presencePenalty,
      "gen_ai.request.choice.count": facts.choices,
      "gen_ai.request.stream": facts.stream,
      "switchyard.task": facts.task,
      ...(sampling.seed === undefined ? {} : { "gen_ai.request.seed": sampling.seed }),
      ...(sampling.stop.length > 0 ? { "gen_ai.request.stop_sequences": [...sampling.stop] } : {}),
    });
  }

  /** The first new token was handed on. */
  firstToken(): void {
    if (this.#sawText) return;
    this.#sawText = true;
    const seconds = (performance.now() - this.#startedAt) / 1000;
    this.#span.setAttribute("gen_ai.response.time_to_first_chunk", seconds);
  }

  /** The answer is complete. */
  finish(model: string, usage: Readonly<UsageCount>, finishReasons: readonly string[]): void {
    this.#span.setAttributes({
      "gen_ai.response.model": model,
      "gen_ai.response.finish_reasons": [...finishReasons],
      "gen_ai.usage.input_tokens": usage.promptTokens,
      "gen_ai.usage.output_tokens": usage.completionTokens,
      "gen_ai.usage.cache_read.input_tokens": usage.cachedTokens,
    });
    this.#span.end();
  }

  /** The request failed. */
  fail(error: unknown): void {
    const { httpStatus, message, code } = doorError(error);
    this.#span.setAttribute("error.type", code ?? String(httpStatus));
    if (httpStatus >= 500) {
      this.#span.recordException(error instanceof Error ? error : String(error));
      this.#span.setStatus({ code: SpanStatusCode.ERROR, message });
    }
    this.#span.end();
  }
}
