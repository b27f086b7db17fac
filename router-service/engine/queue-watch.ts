/** What the engine will run next, by task and phase: how long answers are and how fast it goes is learnt from what it did. */

import {
  AnswerLengths,
  type ServingLimits,
  upcomingTokens,
} from "../../core/statistics/upcoming.ts";
import type { QueuedTokens } from "../../core/statistics/windows.ts";
import type { EngineObserver } from "./observer.ts";
import { numGenerated, numUncomputed, phaseOf, type Sequence } from "./sequence.ts";

/** Seconds that are looked ahead: as many as a window of the statistics has. */
const AHEAD_SECONDS = 10;

/** A sequence that runs or waits, and its task. */
export interface PendingRequest {
  readonly request: { readonly task: string };
  readonly sequence: Readonly<Sequence>;
}

/** Listens to an engine and tells what comes next. */
export interface QueueWatch {
  readonly observer: EngineObserver;
  /**
   * Tokens that are expected within the next ten seconds, at the pace of the last steps.
   * @param pending running ones first, then those that wait, both in order of arrival
   */
  upcoming(pending: readonly PendingRequest[]): QueuedTokens[];
}

/** Starts to watch an engine with these limits. */
export function createQueueWatch(limits: ServingLimits): QueueWatch {
  const lengths = new AnswerLengths();
  let tokensPerMs = 0;
  let lastEnd: number | undefined;
  return {
    observer: {
      onStep: ({ startedAt, finishedAt, numTokens }) => {
        // Steps overlap where one is sent ahead: a step takes from the end of the one before.
        const ms = Math.max(0.01, finishedAt - Math.max(startedAt, lastEnd ?? startedAt));
        lastEnd = finishedAt;
        // By time: a step of a second says more of the pace than one of a millisecond.
        const part = 1 - Math.exp(-ms / (1000 * AHEAD_SECONDS));
        const pace = numTokens / ms;
        tokensPerMs = tokensPerMs === 0 ? pace : tokensPerMs + part * (pace - tokensPerMs);
      },
      onRequest: ({ task, outcome, completionTokens }) => {
        if (outcome === "stop" || outcome === "length") lengths.add(task, completionTokens);
      },
    },
    upcoming: (pending) => {
      const sequences = pending.map(({ request: { task }, sequence }) => {
        const generated = numGenerated(sequence);
        const most = Math.max(0, sequence.maxTokens - generated);
        const prefill = phaseOf(sequence) === "decode" ? 0 : numUncomputed(sequence);
        return { task, prefill, decode: lengths.left(task, generated, most) };
      });
      const tokens = Math.max(limits.maxTokensPerStep, tokensPerMs * 1000 * AHEAD_SECONDS);
      return upcomingTokens(sequences, limits, tokens);
    },
  };
}
