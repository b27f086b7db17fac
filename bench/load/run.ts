/** Runs a load: sends every prompt at its time, never more than the concurrency at once. */

import { setTimeout as sleep } from "node:timers/promises";

import type { Prompt } from "./dataset.ts";
import type { RequestRecord } from "./statistics.ts";

/** What is sent, when, and what is told of it. */
export interface Load {
  readonly prompts: readonly Prompt[];
  /** Milliseconds after the start at which each request arrives, ascending [numPrompts]. */
  readonly arrivals: readonly number[];
  /** Requests under way at most. */
  readonly maxConcurrency: number;
  /** Sends one request; resolves, whatever happens to it. */
  readonly send: (prompt: Prompt) => Promise<RequestRecord>;
  /** Called after each request. */
  readonly onRecord?: () => void;
}

/** Records in the order of the prompts, and the time from the first request sent to the last one ended. */
export interface LoadResult {
  readonly records: readonly RequestRecord[];
  readonly durationSeconds: number;
}

/**
 * Sends the load and waits for all of it; `send` carries the deadline.
 * A request that arrives while `maxConcurrency` others are under way is sent when one of them ends, and timed from then.
 */
export async function runLoad(load: Load): Promise<LoadResult> {
  const records: RequestRecord[] = [];
  const startedAt = performance.now();
  let next = 0;
  async function sendInTurn(): Promise<void> {
    while (next < load.prompts.length) {
      const index = next++;
      const wait = startedAt + load.arrivals[index] - performance.now();
      if (wait > 0) await sleep(wait);
      records[index] = await load.send(load.prompts[index]);
      load.onRecord?.();
    }
  }
  const senders = Math.min(load.maxConcurrency, load.prompts.length);
  await Promise.all(Array.from({ length: senders }, sendInTurn));
  return { records, durationSeconds: (performance.now() - startedAt) / 1000 };
}
