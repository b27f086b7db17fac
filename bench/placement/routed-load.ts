/** Loads of the recorded routing: counts of windows and of single steps, of one task or of all of them mixed. */

import {
  readRecorded,
  RECORDED_SHAPE,
  RECORDED_TASKS,
  type RecordedTask,
} from "../routing/recorded.ts";

const { layers, numExperts, topK } = RECORDED_SHAPE;
const CELLS = layers.length * numExperts;

/** Tokens of a single step. */
export const STEP_TOKENS = 64;

/** Tokens one after the other, as a router would see them. */
export interface TokenStream {
  readonly numTokens: number;
  /** Experts of each token and layer [numTokens, 26, 6]. */
  readonly ids: Uint8Array;
}

/** Tokens [from, to) of a stream. */
export interface Slice {
  readonly stream: TokenStream;
  readonly from: number;
  readonly to: number;
}

/** A window to judge on, and what was known before it. */
export interface Judged {
  readonly future: Slice;
  /** What a planner that only averages has: everything before. */
  readonly past: readonly Slice[];
  /** What the forecast says is ahead: everything before of the tasks that are queued. */
  readonly forecast: readonly Slice[];
}

/** A kind of traffic. */
export interface Traffic {
  readonly name: string;
  readonly judged: readonly Judged[];
}

/** One task alone, each of them; tasks that take turns; and all of them at once. */
export function traffics(): Traffic[] {
  const streams = new Map<RecordedTask, TokenStream>(
    RECORDED_TASKS.map((task) => [task, readRecorded(task)]),
  );
  return [
    ...RECORDED_TASKS.map((task) => ({
      name: `same task: ${task}`,
      judged: windowsOf(streams.get(task)!, 2048),
    })),
    { name: "tasks take turns", judged: takingTurns([...streams.values()], 1024) },
    { name: "tasks mixed", judged: windowsOf(mixedStream([...streams.values()]), 4096) },
  ];
}

/** Every window but the first, known: all before it. */
function windowsOf(stream: TokenStream, size: number): Judged[] {
  const judged: Judged[] = [];
  for (let from = size; from + size <= stream.numTokens; from += size) {
    const past = [{ stream, from: 0, to: from }];
    judged.push({ future: { stream, from, to: from + size }, past, forecast: past });
  }
  return judged;
}

/** Windows of one stream after the other, from the second round on; the forecast knows whose turn it is. */
function takingTurns(streams: readonly TokenStream[], size: number): Judged[] {
  const judged: Judged[] = [];
  const rounds = Math.floor(Math.min(...streams.map((one) => one.numTokens)) / size);
  for (let round = 1; round < rounds; round++) {
    for (const [turn, stream] of streams.entries()) {
      const past = streams.map((one, index) => ({
        stream: one,
        from: 0,
        to: (round + (index < turn ? 1 : 0)) * size,
      }));
      const future = { stream, from: round * size, to: (round + 1) * size };
      judged.push({ future, past, forecast: [past[turn]] });
    }
  }
  return judged;
}

/** A token of each stream in turn. */
function mixedStream(streams: readonly TokenStream[]): TokenStream {
  const each = Math.min(...streams.map((one) => one.numTokens));
  const perToken = layers.length * topK;
  const ids = new Uint8Array(each * streams.length * perToken);
  for (let token = 0; token < each * streams.length; token++) {
    const at = Math.floor(token / streams.length) * perToken;
    const { ids: from } = streams[token % streams.length];
    ids.set(from.subarray(at, at + perToken), token * perToken);
  }
  return { numTokens: each * streams.length, ids };
}

/** Pairs per layer and expert [26, 64]. */
export function countPairs(slices: readonly Slice[]): Float64Array {
  const counts = new Float64Array(CELLS);
  for (const { stream, from, to } of slices) {
    const perToken = layers.length * topK;
    for (let i = from * perToken; i < to * perToken; i++) {
      const layer = Math.floor(i / topK) % layers.length;
      counts[layer * numExperts + stream.ids[i]]++;
    }
  }
  return counts;
}

/** Pairs as of one step of STEP_TOKENS. */
export function perStep(counts: Float64Array): Float64Array {
  let total = 0;
  for (let expert = 0; expert < numExperts; expert++) total += counts[expert];
  return counts.map((count) => (count * STEP_TOKENS * topK) / total);
}

/** Steps one after the other. */
export function stepsOf(slices: readonly Slice[]): Slice[] {
  return slices.flatMap(({ stream, from, to }) =>
    Array.from({ length: Math.floor((to - from) / STEP_TOKENS) }, (_, step) => ({
      stream,
      from: from + step * STEP_TOKENS,
      to: from + (step + 1) * STEP_TOKENS,
    })),
  );
}

/** Loads of up to `most` steps, evenly over all. */
export function sampleSteps(slices: readonly Slice[], most: number): Float64Array[] {
  const steps = stepsOf(slices);
  const count = Math.min(most, steps.length);
  return Array.from({ length: count }, (_, i) =>
    countPairs([steps[Math.floor(((i + 0.5) * steps.length) / count)]]),
  );
}

/** Tokens of the parts that the load's deviation is taken over. */
const PART_TOKENS = 512;

/** Standard deviation of the load per step from one part to another [26, 64]. */
export function deviation(slices: readonly Slice[]): Float64Array {
  const parts = slices.flatMap(({ stream, from, to }) =>
    Array.from({ length: Math.floor((to - from) / PART_TOKENS) }, (_, part) =>
      perStep(
        countPairs([
          { stream, from: from + part * PART_TOKENS, to: from + (part + 1) * PART_TOKENS },
        ]),
      ),
    ),
  );
  const mean = perStep(countPairs(slices));
  return mean.map((pairs, cell) =>
    Math.sqrt(parts.reduce((sum, part) => sum + (part[cell] - pairs) ** 2, 0) / parts.length),
  );
}
