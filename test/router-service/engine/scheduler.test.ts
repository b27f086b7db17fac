import assert from "node:assert/strict";
import { describe, it } from "node:test";

import { BlockPool } from "../../../router-service/engine/block-pool.ts";
import { QueueFullError } from "../../../router-service/engine/errors.ts";
import {
  Scheduler,
  type Chunk,
  type SchedulerLimits,
} from "../../../router-service/engine/scheduler.ts";
import { createSequence, type Sequence } from "../../../router-service/engine/sequence.ts";

function scheduler(numBlocks: number, limits: Partial<SchedulerLimits> = {}) {
  const pool = new BlockPool(numBlocks);
  const bounds = { maxSequences: 8, maxTokens: 64, maxSamples: 64, maxWaiting: 16, ...limits };
  return { pool, scheduler: new Scheduler(pool, bounds) };
}

let numSequences = 0;

/** A sequence whose prompt no other has. */
function sequence(id: string, promptLength: number, wantsPromptLogprobs = false): Sequence {
  const first = ++numSequences * 10_000;
  const promptTokenIds = Array.from({ length: promptLength }, (_, i) => first + i);
  return createSequence({ id, promptTokenIds, maxTokens: 100, wantsPromptLogprobs });
}

/** Computes the chunks; those that reach the end generate a token. */
function commit(it: Scheduler, chunks: readonly Chunk[]): void {
  it.commit(chunks);
  for (const { sequence } of chunks) {
    if (sequence.numComputed === sequence.tokenIds.length) sequence.tokenIds.push(7);
  }
}

const shape = (chunks: readonly Chunk[]) =>
  chunks.map(({ sequence, phase, start, numTokens }) => [sequence.id, phase, start, numTokens]);

describe("the scheduler", () => {
  it("puts decodes first, then prefills that go on, then new ones, within the token budget", () => {
    const { scheduler: it } = scheduler(64, { maxTokens: 20 });
    it.add(sequence("a", 3));
    commit(it, it.schedule().chunks);
    it.add(sequence("b", 45));
    it.add(sequence("c", 4));
    const steps = [1, 2, 3].map(() => {
      const { chunks } = it.schedule();
      commit(it, chunks);
      return shape(chunks);
    });
    assert.deepEqual(steps, [
      [
        ["a", "decode", 3, 1],
        ["b", "prefill", 0, 19],
      ],
      [
        ["a", "decode", 4, 1],
        ["b", "prefill", 19, 19],
      ],
      [
        ["a", "decode", 5, 1],
        ["b", "prefill", 38, 7],
        ["c", "prefill", 0, 4],
      ],
    ]);
  });

  it("admits first come, first served: a small request does not overtake one that waits for blocks", () => {
    const { scheduler: it } = scheduler(4);
    const first = sequence("first", 40);
    it.add(first);
    it.add(sequence("big", 40));
    it.add(sequence("small", 4));
    assert.deepEqual(shape(it.schedule().chunks), [["first", "prefill", 0, 40]]);
    assert.deepEqual(
      it.waiting.map(({ id }) => id),
      ["big", "small"],
    );
    it.remove(first);
    assert.deepEqual(shape(it.schedule().chunks), [
      ["big", "prefill", 0, 40],
      ["small", "prefill", 0, 4],
    ]);
  });

  it("runs no more sequences than the bounds let go on together in every step", () => {
    for (const limits of [{ maxSequences: 3 }, { maxTokens: 3 }, { maxSamples: 3 }]) {
      const { scheduler: it } = scheduler(64, limits);
      for (const id of "abcde") it.add(sequence(id, 1));
      for (let i = 0; i < 4; i++) commit(it, it.schedule().chunks);
      assert.deepEqual(shape(it.schedule().chunks), [
        ["a", "decode", 4, 1],
        ["b", "decode", 4, 1],
        ["c", "decode", 4, 1],
      ]);
    }
  });

  it("preempts the newest, which waits in front and computes its tokens again", () => {
    const { scheduler: it, pool } = scheduler(3);
    const [a, b] = [sequence("a", 16), sequence("b", 15)];
    it.add(a);
    it.add(b);
    it.add(sequence("c", 1));
    commit(it, it.schedule().chunks); // a, b and c run, in one block each
    const { chunks, preempted } = it.schedule();
    assert.deepEqual(
      preempted.map(({ id }) => id),
      ["c"],
    );
    assert.deepEqual(shape(chunks), [
      ["a", "decode", 16, 1],
      ["b", "decode", 15, 1],
    ]);
    commit(it, chunks);
    assert.deepEqual(
      it.schedule().preempted.map(({ id }) => id),
      ["b"],
      "b needs a second block and is the newest itself",
    );
    assert.deepEqual(
      it.waiting.map(({ id }) => id),
      ["b", "c"],
    );
    it.remove(a);
    assert.deepEqual(shape(it.schedule().chunks), [
      ["b", "decode", 16, 1], // its first block was still cached
      ["c", "prefill", 0, 2],
    ]);
    assert.equal(b.cachedTokens, 0, "what it had computed itself is no hit of the request's");
    it.remove(b);
    for (const { sequence } of it.schedule().chunks) it.remove(sequence);
    assert.equal(pool.numFree, 3);
  });

  it("bounds chunks with prompt log-probabilities by the sampled rows of a step", () => {
    const { scheduler: it } = scheduler(64, { maxSamples: 10 });
    it.add(sequence("a", 2));
    commit(it, it.schedule().chunks);
    it.add(sequence("p", 25, true));
    const sizes = [1, 2, 3].map(() => {
      const { chunks } = it.schedule();
      commit(it, chunks);
      return chunks.map(({ numTokens }) => numTokens);
    });
    assert.deepEqual(sizes, [
      [1, 9],
      [1, 9],
      [1, 7],
    ]);
  });

  it("takes nothing from the prefix cache for prompt log-probabilities, but leaves its blocks there", () => {
    const { scheduler: it } = scheduler(64);
    const ids = sequence("any", 40).tokenIds;
    const add = (wantsPromptLogprobs: boolean) => {
      const added = createSequence({
        id: "x",
        promptTokenIds: ids,
        maxTokens: 5,
        wantsPromptLogprobs,
      });
      it.add(added);
      commit(it, it.schedule().chunks);
      it.remove(added);
      return added.cachedTokens;
    };
    assert.deepEqual([add(true), add(true), add(false)], [0, 0, 32]);
  });

  it("computes the last token of a prompt that is cached whole", () => {
    const { scheduler: it } = scheduler(64);
    const ids = sequence("any", 32).tokenIds;
    for (const start of [0, 16]) {
      const added = createSequence({ id: "x", promptTokenIds: ids, maxTokens: 5 });
      it.add(added);
      const { chunks } = it.schedule();
      assert.deepEqual(shape(chunks), [["x", "prefill", start, 32 - start]]);
      commit(it, chunks);
      it.remove(added);
    }
  });

  it("leaves nothing of a step that failed in the prefix cache", () => {
    const { scheduler: it, pool } = scheduler(8, { maxTokens: 20 });
    const failed = sequence("failed", 60);
    it.add(failed);
    commit(it, it.schedule().chunks);
    it.schedule(); // the step fails: no commit
    it.remove(failed);
    assert.equal(pool.numFree, 8);
    assert.equal(pool.lookup(failed.tokenIds, 3).length, 1, "the first step's whole block");
  });

  it("refuses what the queue has no room for, and frees a sequence wherever it is", () => {
    const { scheduler: it, pool } = scheduler(2, { maxWaiting: 2 });
    const [a, b, c] = ["a", "b", "c"].map((id) => sequence(id, 20));
    it.add(a);
    it.schedule();
    it.add(b);
    it.add(c);
    assert.throws(() => it.add(sequence("d", 1)), QueueFullError);
    for (const each of [b, a, c, a]) it.remove(each);
    assert.deepEqual([it.running.length, it.waiting.length, pool.numFree], [0, 0, 2]);
    assert.deepEqual(it.schedule().chunks, []);
  });
});
