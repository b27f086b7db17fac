/** The completions of one request: each is one engine request. */

import type { Context } from "@opentelemetry/api";

import type { EngineRequest, PositionLogprobs, SamplingParams } from "../engine/request.ts";
import { generateText, type TextEvent } from "../engine/text-stream.ts";
import type { Prompt } from "./prompts.ts";
import { seedOf } from "./sampling.ts";
import type { Serving, PromptReport } from "./serving.ts";

/** One completion to be made. */
export interface Choice {
  /** promptIndex · n + i for the i-th completion of a prompt. */
  readonly index: number;
  /** The first completion of its prompt: the prompt's usage is counted here. */
  readonly first: boolean;
  readonly prompt: Prompt;
  readonly sampling: SamplingParams;
}

/** What a run of choices carries. */
export interface Run {
  readonly id: string;
  readonly task: string;
  readonly abort: AbortController;
  readonly traceContext: Context | undefined;
}

/** One completion, made. */
export interface ChoiceResult {
  readonly choice: Choice;
  readonly text: string;
  readonly tokenIds: readonly number[];
  readonly logprobs: readonly PositionLogprobs[];
  readonly prompt: Extract<TextEvent, { type: "prompt" }>;
  readonly finish: Extract<TextEvent, { type: "finish" }>;
}

/** Counts of a whole request. */
export interface UsageCount {
  promptTokens: number;
  completionTokens: number;
  cachedTokens: number;
}

/** n choices of each prompt, in the order of their index; seeds count up from the client's. */
export function planChoices(
  prompts: readonly Prompt[],
  n: number,
  samplingOf: (prompt: Prompt) => SamplingParams,
): Choice[] {
  return prompts.flatMap((prompt, promptIndex) => {
    const sampling = samplingOf(prompt);
    return Array.from({ length: n }, (_, i) => ({
      index: promptIndex * n + i,
      first: i === 0,
      prompt,
      sampling: { ...sampling, seed: seedOf(sampling.seed, i) },
    }));
  });
}

/**
 * Runs the choices in their order, as many at once as the engine runs, and hands each event on as it comes; waits where
 * the receiver waits. A full queue refuses the first choice; the others come as there is room.
 * The first failure aborts the others and is thrown when all have ended.
 */
export async function runChoices(
  serving: Serving,
  choices: readonly Choice[],
  run: Run,
  onEvent: (choice: Choice, event: TextEvent) => void | Promise<void>,
): Promise<void> {
  const { engine, tokenizer } = serving;
  const { signal } = run.abort;
  const arrivedAt = performance.now();
  const report = promptReporter(choices, serving.onPrompt);
  const runOne = async (choice: Choice): Promise<void> => {
    const request: EngineRequest = {
      id: choices.length === 1 ? run.id : `${run.id}-${choice.index}`,
      promptTokenIds: choice.prompt.tokenIds,
      sampling: choice.sampling,
      task: run.task,
      signal,
      traceContext: run.traceContext,
      arrivedAt,
    };
    for await (const event of generateText({ engine, tokenizer, request })) {
      await onEvent(choice, event);
      report(choice, event);
    }
  };
  const failures: unknown[] = [];
  const fail = (error: unknown): void => {
    // Once aborted, the engine only says that it was; the abort's reason says why.
    failures.push(signal.aborted ? signal.reason : error);
    run.abort.abort(failures[0]);
  };
  const running = new Set<Promise<void>>();
  try {
    for (const [i, choice] of choices.entries()) {
      while (running.size >= engine.maxNumSeqs) await Promise.race(running);
      // The engine takes a choice in before anything else can happen, so that room asked for here is room there.
      let room = i === 0 ? undefined : engine.room(signal);
      while (room !== undefined) {
        await room;
        room = engine.room(signal);
      }
      signal.throwIfAborted();
      const one: Promise<void> = runOne(choice)
        .catch(fail)
        .finally(() => running.delete(one));
      running.add(one);
    }
  } catch (error) {
    fail(error);
  }
  await Promise.all(running);
  if (failures.length > 0) throw failures[0];
}

/** Tells of each prompt when the last of its choices has finished. */
function promptReporter(
  choices: readonly Choice[],
  onPrompt: (report: PromptReport) => void,
): (choice: Choice, event: TextEvent) => void {
  const prompts = new Map<Prompt, { n: number; left: number; maxCompletionTokens: number }>();
  for (const { prompt } of choices) {
    const n = (prompts.get(prompt)?.n ?? 0) + 1;
    prompts.set(prompt, { n, left: n, maxCompletionTokens: 0 });
  }
  return ({ prompt }, event) => {
    const counts = prompts.get(prompt);
    if (event.type !== "finish" || counts === undefined) return;
    counts.left--;
    counts.maxCompletionTokens = Math.max(counts.maxCompletionTokens, event.completionTokens);
    if (counts.left === 0) onPrompt(counts);
  };
}

/** Runs all choices and returns them whole, in the order of their index. */
export async function collectChoices(
  serving: Serving,
  choices: readonly Choice[],
  run: Run,
  onEvent: (choice: Choice, event: TextEvent) => void,
): Promise<ChoiceResult[]> {
  const drafts = choices.map((choice) => ({
    choice,
    text: [] as string[],
    tokenIds: [] as number[],
    logprobs: [] as PositionLogprobs[],
    prompt: undefined as ChoiceResult["prompt"] | undefined,
    finish: undefined as ChoiceResult["finish"] | undefined,
  }));
  await runChoices(serving, choices, run, (choice, event) => {
    onEvent(choice, event);
    const draft = drafts[choice.index];
    if (event.type === "prompt") draft.prompt = event;
    else if (event.type === "finish") {
      draft.finish = event;
      draft.tokenIds.push(...finishTokenIds(event));
      draft.logprobs.push(...finishLogprobs(event));
    } else {
      draft.text.push(event.text);
      draft.tokenIds.push(...event.tokenIds);
      draft.logprobs.push(...(event.logprobs ?? []));
    }
  });
  return drafts.map(({ choice, text, tokenIds, logprobs, prompt, finish }) => {
    if (prompt === undefined || finish === undefined) {
      throw new Error(
        `request ${run.id} choice ${choice.index}: the engine ended without a finish`,
      );
    }
    return { choice, text: text.join(""), tokenIds, logprobs, prompt, finish };
  });
}

/** The stop id that ended a completion: part of its token ids, since it is counted, though never of its text. */
export function finishTokenIds(event: ChoiceResult["finish"]): readonly number[] {
  return event.stopTokenId === undefined ? [] : [event.stopTokenId];
}

/** Log-probabilities of that stop id: as many positions as tokens that are counted, where they were asked for. */
export function finishLogprobs(event: ChoiceResult["finish"]): readonly PositionLogprobs[] {
  return event.logprobs === undefined ? [] : [event.logprobs];
}

/** Adds an event's counts; a prompt counts once however many completions it has. */
export function countUsage(usage: UsageCount, choice: Choice, event: TextEvent): void {
  if (event.type === "prompt" && choice.first) {
    usage.promptTokens += choice.prompt.tokenIds.length;
    usage.cachedTokens += event.cachedTokens;
  }
  if (event.type === "finish") usage.completionTokens += event.completionTokens;
}
