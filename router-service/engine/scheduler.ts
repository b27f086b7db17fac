/** Decides what the next step computes: continuous batching with chunked prefill, admission and preemption. */

import type { BlockPool } from "./block-pool.ts";
import { QueueFullError } from "./errors.ts";
import { BLOCK_SIZE } from "./model-runner.ts";
import type { Phase } from "./observer.ts";
import { numSampled, numUncomputed, phaseOf, type Sequence } from "./sequence.ts";

/** Bounds of a step, and of the queue. */
export interface SchedulerLimits {
  /** Sequences that run at a time; no more than `maxTokens` and `maxSamples`, so that each can go on in every step. */
  readonly maxSequences: number;
  /** Tokens of a step. */
  readonly maxTokens: number;
  /** Sampled rows of a step. */
  readonly maxSamples: number;
  /** Sequences that wait. */
  readonly maxWaiting: number;
}

/** A sequence's next tokens: `numTokens` from position `start`. */
export interface Chunk {
  readonly sequence: Sequence;
  readonly phase: Phase;
  readonly start: number;
  readonly numTokens: number;
}

/** What the next step computes, decodes first, and who lost their blocks for it. */
export interface Schedule {
  readonly chunks: readonly Chunk[];
  readonly preempted: readonly Sequence[];
}

/**
 * Waiting and running sequences. Both lists are in order of arrival, and all that run came before all that wait:
 * admission is first come, first served, and preemption takes the newest that runs. So the oldest always goes on,
 * and every sequence that fits the pool alone is finished one day.
 */
export class Scheduler {
  readonly #pool: BlockPool;
  readonly #limits: SchedulerLimits;
  readonly #waiting: Sequence[] = [];
  readonly #running: Sequence[] = [];

  constructor(pool: BlockPool, limits: SchedulerLimits) {
    const most = Math.min(limits.maxSequences, limits.maxTokens, limits.maxSamples);
    this.#pool = pool;
    this.#limits = { ...limits, maxSequences: most };
  }

  get waiting(): readonly Sequence[] {
    return this.#waiting;
  }

  get running(): readonly Sequence[] {
    return this.#running;
  }

  /** Queues a sequence. Throws QueueFullError. */
  add(sequence: Sequence): void {
    const { maxWaiting } = this.#limits;
    if (this.#waiting.length >= maxWaiting) {
      throw new QueueFullError(this.#waiting.length, maxWaiting);
    }
    this.#waiting.push(sequence);
  }

  /** The next step: decodes first, then prefills that go on, then new ones while there is room. */
  schedule(): Schedule {
    const room = { tokens: this.#limits.maxTokens, samples: this.#limits.maxSamples };
    const preempted: Sequence[] = [];
    const chunks: Chunk[] = [];
    const add = (sequence: Sequence) => {
      const numTokens = chunkSize(sequence, room.tokens, room.samples);
      if (numTokens === 0) return;
      room.tokens -= numTokens;
      room.samples -= numSampled(sequence, numTokens);
      const phase = phaseOf(sequence);
      chunks.push({ sequence, phase, start: sequence.numComputed, numTokens });
    };

    const decoding = this.#running.filter((sequence) => phaseOf(sequence) === "decode");
    for (const sequence of decoding) {
      while (sequence.state === "running" && !this.#canGrow(sequence)) {
        preempted.push(this.#preemptNewest());
      }
      if (sequence.state !== "running") break; // it was the newest, as all after it were before
      this.#grow(sequence);
      add(sequence);
    }
    for (const sequence of this.#running) {
      if (phaseOf(sequence) === "prefill") add(sequence);
    }
    while (preempted.length === 0 && room.tokens > 0 && room.samples > 0) {
      const sequence = this.#admitNext();
      if (sequence === undefined) break;
      add(sequence);
    }
    return { chunks, preempted };
  }

  /**
   * Makes room for one token more of each sequence than is known of it. False where that is impossible, or where
   * the next step would hold others too: a sequence that waits and could run, or one that runs and is neither of them nor
   * of the `numEnding` that end with the step in flight.
   */
  growAhead(followers: readonly Sequence[], numEnding: number): boolean {
    const isFull = this.#running.length >= this.#limits.maxSequences;
    if (this.#waiting.length > 0 && !isFull) return false;
    if (followers.length + numEnding < this.#running.length) return false;
    const missing = followers.map((sequence) => numBlocksMissing(sequence, 1));
    if (!this.#pool.canAllocate(missing.reduce((sum, count) => sum + count, 0))) return false;
    for (const [i, sequence] of followers.entries()) {
      sequence.blocks.push(...this.#pool.allocate(missing[i]));
    }
    return true;
  }

  /** Takes note that a step has computed its chunks; whole blocks become known to the prefix cache. */
  commit(chunks: readonly Chunk[]): void {
    for (const { sequence, start, numTokens } of chunks) {
      // A token that was chosen ahead for a sequence that ended meanwhile: nobody knows it.
      if (start + numTokens > sequence.tokenIds.length) continue;
      const first = Math.floor(sequence.numComputed / BLOCK_SIZE);
      sequence.numPromptSampled = Math.max(
        sequence.numPromptSampled,
        Math.min(sequence.numComputed + numTokens, sequence.promptLength - 1),
      );
      sequence.numComputed += numTokens;
      const { blocks, tokenIds } = sequence;
      for (let i = first; (i + 1) * BLOCK_SIZE <= sequence.numComputed; i++) {
        blocks[i] = this.#pool.register(blocks[i], blocks[i - 1], tokenIds, i);
      }
    }
  }

  /** Ends a sequence, wherever it is, and frees its blocks; nothing of a step that failed is in the prefix cache. */
  remove(sequence: Sequence): void {
    const list = sequence.state === "waiting" ? this.#waiting : this.#running;
    const index = list.indexOf(sequence);
    if (index < 0) return;
    list.splice(index, 1);
    this.#free(sequence);
    sequence.state = "ended";
  }

  #canGrow(sequence: Sequence): boolean {
    return numBlocksMissing(sequence) === 0 || this.#pool.canAllocate(numBlocksMissing(sequence));
  }

  #grow(sequence: Sequence): void {
    sequence.blocks.push(...this.#pool.allocate(numBlocksMissing(sequence)));
  }

  #preemptNewest(): Sequence {
    const sequence = this.#running.pop();
    if (sequence === undefined) throw new Error("no running sequence to preempt");
    this.#free(sequence);
    sequence.state = "waiting";
    this.#waiting.unshift(sequence);
    return sequence;
  }

  /** Lets the first in the queue run if all its tokens find room; it alone is asked, so that nobody is overtaken. */
  #admitNext(): Sequence | undefined {
    const sequence = this.#waiting[0];
    if (sequence === undefined || this.#running.length >= this.#limits.maxSequences) return;
    const { tokenIds, wantsPromptLogprobs, promptLength } = sequence;
    const most = wantsPromptLogprobs ? 0 : Math.floor((tokenIds.length - 1) / BLOCK_SIZE);
    const cached = this.#pool.lookup(tokenIds, most);
    const numMissing = Math.ceil(tokenIds.length / BLOCK_SIZE) - cached.length;
    if (!this.#pool.canAllocate(numMissing, cached)) return;
    this.#pool.reuse(cached);
    sequence.blocks = [...cached, ...this.#pool.allocate(numMissing)];
    sequence.numComputed = cached.length * BLOCK_SIZE;
    sequence.cachedTokens ??= Math.min(sequence.numComputed, promptLength);
    sequence.state = "running";
    this.#waiting.shift();
    this.#running.push(sequence);
    return sequence;
  }

  #free(sequence: Sequence): void {
    this.#pool.release(sequence.blocks);
    sequence.blocks = [];
    sequence.numComputed = 0;
  }
}

/** Blocks that a sequence lacks for all its tokens, and `more` that are not known yet. */
function numBlocksMissing(sequence: Sequence, more = 0): number {
  const needed = Math.ceil((sequence.tokenIds.length + more) / BLOCK_SIZE);
  return Math.max(0, needed - sequence.blocks.length);
}

/** The most next tokens of a sequence that a step with room for `tokens` and `samples` takes. */
function chunkSize(sequence: Sequence, tokens: number, samples: number): number {
  let size = Math.min(numUncomputed(sequence), tokens);
  // A token less is a sampled row less, or none where the row is not wanted.
  while (numSampled(sequence, size) > samples) size -= numSampled(sequence, size) - samples;
  return size;
}
