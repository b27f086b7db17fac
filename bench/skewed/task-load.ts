/** A load of one task at a time, the task changing: as many requests as are allowed are always under way. */

import { readFile } from "node:fs/promises";
import path from "node:path";

import { readModelConfig } from "../../core/model/load-config.ts";
import { loadTokenizer } from "../../core/model/tokenizer/tokenizer.ts";
import { sendRequest, type Target } from "../load/client.ts";
import { textPrompts } from "../load/dataset.ts";
import { seededRandom } from "../../core/random.ts";
import type { RequestRecord } from "../load/statistics.ts";

/** Prompts of one task. */
export interface TaskPrompts {
  readonly task: string;
  readonly prompts: readonly (readonly number[])[];
}

/** What is sent. */
export interface TaskLoad {
  readonly url: string;
  readonly model: string;
  /** In their order; over and over. */
  readonly tasks: readonly TaskPrompts[];
  /** Time of each task, seconds. */
  readonly secondsPerTask: number;
  /** Times that all tasks take turns. */
  readonly rounds: number;
  readonly concurrency: number;
  readonly outputTokens: number;
}

/** A request of the load: when it was sent, seconds from the begin, in which task's time, and what came of it. */
export interface TaskRecord {
  readonly sentAt: number;
  readonly endedAt: number;
  readonly task: string;
  readonly record: RequestRecord;
}

/** Longest that one request may take, milliseconds. */
const TIMEOUT_MS = 120_000;

/** Draws prompts from the demo model's held-out texts, `count` of each task. */
export async function readTasks(
  model: string,
  names: readonly string[],
  count: number,
  length: number,
  seed: number,
): Promise<TaskPrompts[]> {
  const tokenizer = await loadTokenizer(model, await readModelConfig(model));
  if (tokenizer === undefined) throw new Error(`${model} has no tokenizer`);
  const random = seededRandom(seed);
  return Promise.all(
    names.map(async (task) => {
      const text = await readFile(path.join(model, "eval", `${task}.txt`), "utf8");
      const prompts = textPrompts([text], count, length, random, (one) => tokenizer.encode(one));
      return { task, prompts };
    }),
  );
}

/** Sends the load and resolves with every request's record; calls `onTask` when a task's time begins. */
export async function runTaskLoad(
  load: TaskLoad,
  onTask?: (task: string, turn: number) => void,
): Promise<TaskRecord[]> {
  const { tasks, secondsPerTask, concurrency } = load;
  const turns = tasks.length * load.rounds;
  const startedAt = performance.now();
  const seconds = () => (performance.now() - startedAt) / 1000;
  const records: TaskRecord[] = [];
  const sent = tasks.map(() => 0);
  let turn = -1;
  const sendInTurn = async (): Promise<void> => {
    for (;;) {
      const now = Math.floor(seconds() / secondsPerTask);
      if (now >= turns) return;
      const at = now % tasks.length;
      const { task, prompts } = tasks[at];
      if (now !== turn) onTask?.(task, (turn = now));
      const target: Target = {
        baseUrl: load.url,
        endpoint: "completions",
        model: load.model,
        task,
        extraBody: { temperature: 0, ignore_eos: true, return_token_ids: true },
        outputTokens: load.outputTokens,
        timeoutMs: TIMEOUT_MS,
      };
      const sentAt = seconds();
      const record = await sendRequest(target, prompts[sent[at]++ % prompts.length]);
      records.push({ sentAt, endedAt: seconds(), task, record });
    }
  };
  await Promise.all(Array.from({ length: concurrency }, sendInTurn));
  return records;
}
