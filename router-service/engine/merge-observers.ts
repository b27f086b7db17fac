/** Several observers as one. */

import type { Context } from "@opentelemetry/api";

import type { Log } from "../../core/platform/log.ts";
import type { EngineObserver } from "./observer.ts";

/** Tells every observer; one that throws is logged the first time and hurts neither the others nor the engine. */
export function mergeObservers(
  log: Pick<Log, "error">,
  ...observers: readonly EngineObserver[]
): EngineObserver {
  const failed = new Set<EngineObserver>();
  const tell = <T>(each: (observer: EngineObserver) => T): T | undefined => {
    let first: T | undefined;
    for (const observer of observers) {
      try {
        const answer = each(observer);
        first ??= answer;
      } catch (error) {
        if (!failed.has(observer)) log.error({ err: error }, "an engine observer failed");
        failed.add(observer);
      }
    }
    return first;
  };
  return {
    stepContext: (sequences) =>
      tell<Context | undefined>((observer) => observer.stepContext?.(sequences)),
    onStep: (report) => tell((observer) => observer.onStep?.(report)),
    onStepFailed: (report) => tell((observer) => observer.onStepFailed?.(report)),
    onToken: (requestId, gapMs) => tell((observer) => observer.onToken?.(requestId, gapMs)),
    onPreemption: (requestId) => tell((observer) => observer.onPreemption?.(requestId)),
    onRequest: (timeline) => tell((observer) => observer.onRequest?.(timeline)),
  };
}
