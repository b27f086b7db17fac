/** Traces for the forecast: recorded sequences served in some order, cut into windows, with what is queued before each. */

import { seededRandom } from "../../core/random.ts";
import type { CountedPhase } from "../../core/statistics/routed-step.ts";
import {
  AnswerLengths,
  upcomingTokens,
  type PendingSequence,
} from "../../core/statistics/upcoming.ts";
import type { CountedWindow, QueuedTokens } from "../../core/statistics/windows.ts";
import {
  RECORDED_SHAPE,
  RECORDED_TASKS,
  readRecorded,
  type RecordedTask,
} from "../routing/recorded.ts";

/** The router that serves the traces. */
const LIMITS = { maxSequences: 8, maxTokensPerStep: 64 };

/** Tokens that clients allow an answer: what the forecast knows of its length. */
const MAX_DECODE = 256;

/** Sequences that wait and are known to the forecast. */
const WAITING = 8;

/** Seconds that a window stands for. */
const WINDOW_SECONDS = 10;

/** One window, and what was known when it began. */
export interface TraceWindow {
  readonly queued: readonly QueuedTokens[];
  readonly counted: CountedWindow;
  /** Whether its task is another than that of the window before; undefined where windows mix tasks. */
  readonly switched?: boolean;
}

/** Windows in order of time. */
export interface Trace {
  readonly name: string;
  readonly windows: readonly TraceWindow[];
}

/** A recorded sequence. */
interface Sequence {
  readonly task: RecordedTask;
  readonly from: number;
  readonly to: number;
}

const recorded = new Map(RECORDED_TASKS.map((task) => [task, readRecorded(task)]));

function sequencesOf(task: RecordedTask): Sequence[] {
  const { sequences } = recorded.get(task)!;
  return sequences.slice(1).map((to, i) => ({ task, from: sequences[i], to }));
}

/** Every trace, of windows of `tokens` tokens, none of which sees a sequence twice. */
export function traces(tokens: number, seed: number): Trace[] {
  return [
    ...RECORDED_TASKS.map((task) => trace(`same task: ${task}`, sequencesOf(task), tokens)),
    ...[1024, 2048, 4096].map((segment) =>
      trace(`switching every ${segment} tokens`, switching(segment), tokens),
    ),
    ...["even mix", "drifting mix"].map((name) =>
      trace(name, mixed(name === "even mix", seed), tokens),
    ),
  ];
}

/** Tasks take turns, about `segment` tokens each. */
function switching(segment: number): Sequence[] {
  const left = RECORDED_TASKS.map(sequencesOf);
  const order: Sequence[] = [];
  while (left.every((queue) => queue.length > 0)) {
    for (const queue of left) {
      for (let taken = 0; taken < segment && queue.length > 0;) {
        const next = queue.shift()!;
        taken += next.to - next.from;
        order.push(next);
      }
    }
  }
  return order;
}

/** Tasks at random, by tokens: with equal weights, or with weights that wander; until one task has no more sequences. */
function mixed(even: boolean, seed: number): Sequence[] {
  const random = seededRandom(seed);
  const left = RECORDED_TASKS.map(sequencesOf);
  const phase = left.map(() => random() * 2 * Math.PI);
  const served = left.map(() => 0);
  const order: Sequence[] = [];
  for (let tokens = 0; ;) {
    const weights = phase.map((p) => (even ? 1 : Math.exp(1.5 * Math.sin(p + tokens / 600))));
    const total = weights.reduce((sum, one) => sum + one, 0);
    // The task that is furthest behind its weight, with some chance in it.
    for (const [i] of left.entries()) served[i] *= 0.9;
    const behind = weights.map(
      (weight, i) => (weight / total) * (0.5 + random()) * 1000 - served[i],
    );
    const i = behind.indexOf(Math.max(...behind));
    const next = left[i].shift();
    if (next === undefined) return order;
    served[i] += next.to - next.from;
    tokens += next.to - next.from;
    order.push(next);
  }
}

/** Serves sequences as a router does: decodes first, then prompts, first come, first served. */
function trace(name: string, order: readonly Sequence[], windowTokens: number): Trace {
  const waiting = [...order];
  const running: { readonly sequence: Sequence; readonly prompt: number; at: number }[] = [];
  const windows: TraceWindow[] = [];
  const lengths = new AnswerLengths();
  const known = (sequence: Sequence, at: number): PendingSequence => ({
    task: sequence.task,
    prefill: Math.max(0, promptEnd(sequence) - at),
    decode: lengths.left(sequence.task, Math.max(0, at - promptEnd(sequence)), MAX_DECODE),
  });
  let window = new WindowCounts();
  let queued: QueuedTokens[] = [];
  let before: string | undefined;
  for (;;) {
    while (running.length < LIMITS.maxSequences && waiting.length > 0) {
      const sequence = waiting.shift()!;
      running.push({ sequence, prompt: promptEnd(sequence), at: sequence.from });
    }
    // The last ones would run alone.
    if (running.length < LIMITS.maxSequences) return { name, windows };
    if (window.tokens === 0) {
      const pending = [
        ...running.map(({ sequence, at }) => known(sequence, at)),
        ...waiting.slice(0, WAITING).map((sequence) => known(sequence, sequence.from)),
      ];
      queued = upcomingTokens(pending, LIMITS, windowTokens);
    }
    window.steps++;
    let room = LIMITS.maxTokensPerStep;
    for (const one of running) {
      if (one.at < one.prompt) continue;
      window.add(one.sequence.task, "decode", one.at, ++one.at);
      room--;
    }
    for (const one of running) {
      const end = Math.min(one.at + room, one.prompt);
      if (end <= one.at) continue;
      window.add(one.sequence.task, "prefill", one.at, end);
      room -= end - one.at;
      one.at = end;
    }
    for (let i = running.length - 1; i >= 0; i--) {
      const { sequence, prompt, at } = running[i];
      if (at < sequence.to) continue;
      lengths.add(sequence.task, at - prompt);
      running.splice(i, 1);
    }
    if (window.tokens < windowTokens) continue;
    const main = window.mainTask();
    windows.push({
      queued,
      counted: window.counted(),
      switched: before !== undefined && main !== before,
    });
    before = main;
    window = new WindowCounts();
  }
}

/** Three quarters of a recorded text stand for the prompt. */
function promptEnd({ from, to }: Sequence): number {
  return from + Math.floor(0.75 * (to - from));
}

/** Counts of a window under way. */
class WindowCounts {
  tokens = 0;
  steps = 0;
  readonly #series = new Map<
    string,
    {
      readonly task: RecordedTask;
      readonly phase: CountedPhase;
      tokens: number;
      readonly expertTokens: Float64Array;
    }
  >();

  add(task: RecordedTask, phase: CountedPhase, from: number, to: number): void {
    const { layers, numExperts, topK } = RECORDED_SHAPE;
    const { ids } = recorded.get(task)!;
    let series = this.#series.get(task + phase);
    if (series === undefined) {
      series = {
        task,
        phase,
        tokens: 0,
        expertTokens: new Float64Array(layers.length * numExperts),
      };
      this.#series.set(task + phase, series);
    }
    this.tokens += to - from;
    series.tokens += to - from;
    const row = layers.length * topK;
    for (let i = from * row; i < to * row; i++) {
      series.expertTokens[Math.floor((i % row) / topK) * numExperts + ids[i]]++;
    }
  }

  mainTask(): RecordedTask {
    const tokens = new Map<RecordedTask, number>();
    for (const one of this.#series.values())
      tokens.set(one.task, (tokens.get(one.task) ?? 0) + one.tokens);
    return [...tokens].sort(([, a], [, b]) => b - a)[0][0];
  }

  counted(): CountedWindow {
    return { seconds: WINDOW_SECONDS, steps: this.steps, series: [...this.#series.values()] };
  }
}
