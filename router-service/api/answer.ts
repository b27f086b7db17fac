/** Answers a generation request over HTTP, whole or as a stream of events; what it looks like is the format's business. */

import type { ServerResponse } from "node:http";

import type { TextEvent } from "../engine/text-stream.ts";
import { ClientGoneError, doorError, errorBody } from "./api-errors.ts";
import {
  type Choice,
  type ChoiceResult,
  collectChoices,
  countUsage,
  type Run,
  runChoices,
  type UsageCount,
} from "./choices.ts";
import type { RequestSpan } from "./request-span.ts";
import type { Serving } from "./serving.ts";
import { EventStream } from "./sse.ts";

/** OpenAI's `usage`. */
export interface Usage {
  readonly prompt_tokens: number;
  readonly completion_tokens: number;
  readonly total_tokens: number;
  readonly prompt_tokens_details: { readonly cached_tokens: number };
}

/** How an endpoint writes its answers: chat or completions. */
export interface AnswerFormat {
  /** The object around streamed choices, without `usage`. */
  chunk(choices: readonly object[]): object;
  /** Choices to stream when an event comes. */
  choices(choice: Choice, event: TextEvent): readonly object[];
  /** The whole answer, without `usage`. */
  whole(results: readonly ChoiceResult[]): object;
}

/** A checked request, ready to run. */
export interface Plan {
  readonly choices: readonly Choice[];
  readonly format: AnswerFormat;
  readonly stream: boolean;
  /** A last chunk carries the usage. */
  readonly includeUsage: boolean;
}

/** Runs the plan and returns the whole answer. Throws what the engine throws. */
export async function answerWhole(
  serving: Serving,
  plan: Plan,
  run: Run,
  span: RequestSpan,
): Promise<object> {
  const usage = emptyUsage();
  const results = await collectChoices(serving, plan.choices, run, (choice, event) => {
    countUsage(usage, choice, event);
    if (event.type === "delta") span.firstToken();
  });
  const reasons = results.map(({ finish }) => finish.reason);
  span.finish(serving.servedModelName, usage, reasons);
  return { ...plan.format.whole(results), usage: usageBody(usage) };
}

/**
 * Runs the plan and streams its events, all choices interleaved.
 * Throws what fails before the first event; a later failure is one error event, and no [DONE] after it.
 */
export async function answerStream(
  serving: Serving,
  plan: Plan,
  run: Run,
  span: RequestSpan,
  raw: ServerResponse,
  takeOver: () => Record<string, string>,
): Promise<void> {
  const stream = new EventStream(raw, serving.limits.unreadMs, takeOver);
  const usage = emptyUsage();
  const reasons: string[] = [];
  const noUsage = plan.includeUsage ? { usage: null } : {};
  try {
    await runChoices(serving, plan.choices, run, async (choice, event) => {
      countUsage(usage, choice, event);
      if (event.type === "delta") span.firstToken();
      if (event.type === "finish") reasons.push(event.reason);
      for (const shown of plan.format.choices(choice, event)) {
        await stream.send({ ...plan.format.chunk([shown]), ...noUsage });
      }
    });
    if (plan.includeUsage) {
      await stream.send({ ...plan.format.chunk([]), usage: usageBody(usage) });
    }
    await stream.send("[DONE]");
    span.finish(serving.servedModelName, usage, reasons);
  } catch (error) {
    if (!stream.opened) throw error;
    span.fail(error);
    if (!(error instanceof ClientGoneError)) {
      const door = doorError(error);
      if (door.httpStatus === 500) serving.log.error({ id: run.id, err: error }, "request failed");
      await stream.send(errorBody(door)).catch(() => undefined);
    }
  }
  await stream.end();
}

/** OpenAI's `usage` of a request's counts. */
function usageBody(usage: Readonly<UsageCount>): Usage {
  return {
    prompt_tokens: usage.promptTokens,
    completion_tokens: usage.completionTokens,
    total_tokens: usage.promptTokens + usage.completionTokens,
    prompt_tokens_details: { cached_tokens: usage.cachedTokens },
  };
}

/** No tokens counted yet. */
export function emptyUsage(): UsageCount {
  return { promptTokens: 0, completionTokens: 0, cachedTokens: 0 };
}
