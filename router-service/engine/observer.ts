/** What the engine tells the outside of its work: statistics, metrics and traces listen, none can hold it up. */

import type { Context } from "@opentelemetry/api";

import type { FinishReason } from "./request.ts";
import type { Routing } from "./run-experts.ts";

/** Decode computes a sequence's last generated token alone; all else is prefill. */
export type Phase = "prefill" | "decode";

/** One sequence's part of a step. */
export interface StepSequence {
  readonly requestId: string;
  readonly task: string;
  readonly phase: Phase;
  readonly numTokens: number;
  readonly traceContext?: Context;
}

/** A finished step. Times are milliseconds of performance.now(). */
export interface StepReport {
  readonly startedAt: number;
  readonly finishedAt: number;
  /** In the order of the batch's rows: the first sequence's tokens come first. */
  readonly sequences: readonly StepSequence[];
  readonly numTokens: number;
  /** By layer; rows as in the batch. */
  readonly routing: ReadonlyMap<number, Routing>;
}

/** The life of one request. Times are milliseconds of performance.now(); absent where it did not get so far. */
export interface RequestTimeline {
  readonly id: string;
  readonly task: string;
  readonly arrivedAt: number;
  readonly scheduledAt?: number;
  readonly firstTokenAt?: number;
  readonly lastTokenAt?: number;
  readonly finishedAt: number;
  readonly promptTokens: number;
  /** Prompt tokens looked up in the prefix cache: all, or none where every position is computed anyway. */
  readonly lookedUpTokens: number;
  readonly cachedTokens: number;
  readonly completionTokens: number;
  readonly maxTokens: number;
  readonly outcome: FinishReason | "abort" | "error";
  readonly traceContext?: Context;
}

/** Every method returns at once and never throws; all are optional. */
export interface EngineObserver {
  /** Before a step: the trace context that its dispatch spans hang from; undefined where the step is not sampled. */
  stepContext?(sequences: readonly StepSequence[]): Context | undefined;
  onStep?(report: StepReport): void;
  /** Instead of onStep where a step gives no result: it failed, or was aborted as nobody wanted it any more. */
  onStepFailed?(report: { readonly finishedAt: number; readonly aborted: boolean }): void;
  /** Gap to the request's previous token, milliseconds; absent for its first. */
  onToken?(requestId: string, gapMs: number | undefined): void;
  onPreemption?(requestId: string): void;
  onRequest?(timeline: RequestTimeline): void;
}
