/** What a router's queue will run next, as far as it is known. Pure. */

import type { QueuedTokens } from "./windows.ts";

/** Tokens that an answer is expected to have while no other of its task has ended. */
const UNKNOWN_LENGTH = 128;

/** Part of the way that the mean goes to the answer that ended last. */
const LEARNING_RATE = 0.1;

/** Tasks whose answers are told apart: no more than the counters know. */
const MAX_TASKS = 65;

/** A sequence that runs or waits, as far as its tokens to come are known. */
export interface PendingSequence {
  readonly task: string;
  /** Prompt tokens that are still to be computed. */
  readonly prefill: number;
  /** Tokens that it is expected to generate yet. */
  readonly decode: number;
}

/** How a router serves. */
export interface ServingLimits {
  readonly maxSequences: number;
  readonly maxTokensPerStep: number;
}

/** How long the answers of a task are, learnt from those that ended; at most MAX_TASKS of them are told apart. */
export class AnswerLengths {
  readonly #means = new Map<string, number>();

  /** Takes note of an answer that ended. */
  add(task: string, tokens: number): void {
    const mean = this.#means.get(task);
    if (mean === undefined && this.#means.size >= MAX_TASKS) return;
    this.#means.set(task, mean === undefined ? tokens : mean + LEARNING_RATE * (tokens - mean));
  }

  /** Tokens that an answer of `generated` tokens is expected to go on for, at most `most`. */
  left(task: string, generated: number, most: number): number {
    const mean = this.#means.get(task) ?? UNKNOWN_LENGTH;
    return Math.min(most, Math.ceil(Math.max(mean - generated, mean / 4)));
  }
}

/**
 * The next `tokens` tokens by task and phase, fewer where the queue ends before: decodes go on by one token in each step,
 * prefills take the room that is left, first come, first served.
 * @param sequences in order of arrival
 */
export function upcomingTokens(
  sequences: readonly PendingSequence[],
  { maxSequences, maxTokensPerStep }: ServingLimits,
  tokens: number,
): QueuedTokens[] {
  const sums = new Map<string, { prefill: number; decode: number }>();
  const left = sequences.flatMap(({ task, prefill, decode }) => {
    if (prefill + decode === 0) return [];
    const sum = sums.get(task) ?? { prefill: 0, decode: 0 };
    sums.set(task, sum);
    return [{ prefill, decode, sum }];
  });
  let running = left.slice(0, maxSequences);
  let admitted = running.length;
  for (let taken = 0; taken < tokens && running.length > 0;) {
    let room = maxTokensPerStep;
    for (const one of running) {
      if (one.prefill > 0 || one.decode === 0 || room === 0) continue;
      one.decode--;
      one.sum.decode++;
      room--;
      taken++;
    }
    for (const one of running) {
      const chunk = Math.min(one.prefill, room);
      one.prefill -= chunk;
      one.sum.prefill += chunk;
      room -= chunk;
      taken += chunk;
    }
    running = running.filter((one) => one.prefill > 0 || one.decode > 0);
    while (running.length < maxSequences && admitted < left.length) running.push(left[admitted++]);
  }
  return [...sums].flatMap(([task, sum]) =>
    (["prefill", "decode"] as const).flatMap((phase) =>
      sum[phase] === 0 ? [] : [{ task, phase, tokens: sum[phase] }],
    ),
  );
}
