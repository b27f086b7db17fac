/**
 * A model runner without a model: integer arithmetic over a paged cache of its own, to judge the engine's bookkeeping.
 * The next token's logits are a hash of every entry that the block table leads to, so a wrong block, a wrong position
 * or an entry of an earlier sequence shows as another token.
 */

import assert from "node:assert/strict";

import {
  BLOCK_SIZE,
  type ModelRunner,
  type SampleLogits,
  type SampleRow,
  type StepBatch,
  type StepContext,
  type StepResult,
} from "../../router-service/engine/model-runner.ts";

/** What a toy runner is made of. */
export interface ToyOptions {
  readonly numBlocks: number;
  readonly maxTokens?: number;
  readonly maxSequences?: number;
  readonly maxSamples?: number;
  readonly vocabSize?: number;
  /** A second step may be started while one is in flight. */
  readonly runsAhead?: boolean;
  /** Runs before each step has computed anything, after it has written garbage where it will write; may throw. */
  readonly beforeStep?: (batch: StepBatch, context: StepContext) => Promise<void> | void;
}

/** The toy's tokens are few, so that continuations differ soon but logits tie now and then. */
const TOY_VOCAB_SIZE = 97;

/** A toy runner, with what its steps were. */
export interface ToyRunner extends ModelRunner {
  readonly batches: readonly StepBatch[];
  readonly vocabSize: number;
  lose(reason: string): void;
}

/** Makes a toy runner. */
export function createToyRunner(options: ToyOptions): ToyRunner {
  const { numBlocks, maxTokens = 4096, maxSequences = 256, maxSamples = 256 } = options;
  const { vocabSize = TOY_VOCAB_SIZE, beforeStep } = options;
  /** Token id and position of each slot, hashed [numBlocks * BLOCK_SIZE]; 0 where nothing was written. */
  const entries = new Uint32Array(numBlocks * BLOCK_SIZE);
  const batches: StepBatch[] = [];
  const { promise: lost, resolve: lose } = Promise.withResolvers<string>();
  /** Steps run one after another; this is the last one's result. */
  let before: Promise<StepResult> | undefined;
  let inFlight = 0;

  const slotOf = (batch: StepBatch, row: number, position: number) => {
    const block = batch.blockTables[row][Math.floor(position / BLOCK_SIZE)];
    assert.ok(block >= 0 && block < numBlocks, `position ${position} has no block: ${block}`);
    return block * BLOCK_SIZE + (position % BLOCK_SIZE);
  };

  return {
    adapter: "toy",
    runsAhead: options.runsAhead ?? false,
    maxTokens,
    maxSequences,
    maxSamples,
    numBlocks,
    vocabSize,
    batches,
    lost,
    lose,
    close() {},
    async forward(batch, context): Promise<StepResult> {
      const numTokens = batch.tokenIds.length;
      assert.ok(numTokens > 0 && numTokens <= maxTokens, `${numTokens} tokens`);
      assert.ok(batch.samples.length <= maxSamples, `${batch.samples.length} sampled rows`);
      assert.ok(batch.blockTables.length <= maxSequences, `${batch.blockTables.length} sequences`);
      assert.ok(
        batch.samples.every((row, i) => i === 0 || row.token > batch.samples[i - 1].token),
        "samples ascend",
      );
      batches.push(batch);
      assert.ok(++inFlight <= (options.runsAhead ? 2 : 1), `${inFlight} steps in flight`);
      const mine = compute(batch, context, before);
      before = mine;
      try {
        return await mine;
      } finally {
        inFlight--;
      }
    },
  };

  async function compute(
    batch: StepBatch,
    context: StepContext,
    earlier: Promise<StepResult> | undefined,
  ): Promise<StepResult> {
    const { samples: chosen } = (await earlier?.catch(() => undefined)) ?? { samples: [] };
    const numTokens = batch.tokenIds.length;
    const tokenIds = batch.follows
      ? batch.tokenIds.map((row) => chosen[row]?.candidateIds[0] ?? 0)
      : batch.tokenIds;
    const slots = Array.from(batch.positions, (position, i) =>
      slotOf(batch, batch.sequenceRows[i], position),
    );
    assert.equal(new Set(slots).size, numTokens, "two tokens of a step share a slot");
    for (const slot of slots) entries[slot] = 0xdead;
    await beforeStep?.(batch, context);
    for (const [i, slot] of slots.entries()) {
      entries[slot] = entryOf(tokenIds[i], batch.positions[i]);
    }
    const samples = batch.samples.map((sample) => {
      const row = batch.sequenceRows[sample.token];
      let state = 0;
      for (let position = 0; position <= batch.positions[sample.token]; position++) {
        state = mix(state, entries[slotOf(batch, row, position)]);
      }
      return sampleLogits(toyLogits(state, vocabSize), sample);
    });
    const ids = new Uint32Array(tokenIds);
    const weights = new Float32Array(numTokens).fill(1);
    return { samples, routing: new Map([[0, { ids, weights, topK: 1 }]]) };
  }
}

/** Next-token logits [vocabSize] of a whole sequence, without any cache: the toy's oracle. */
export function toyLogitsOf(tokenIds: readonly number[], vocabSize = TOY_VOCAB_SIZE): Float32Array {
  let state = 0;
  for (const [position, id] of tokenIds.entries()) state = mix(state, entryOf(id, position));
  return toyLogits(state, vocabSize);
}

/** The greedy continuation of a prompt by the oracle. */
export function toyContinuation(
  prompt: readonly number[],
  numTokens: number,
  vocabSize = TOY_VOCAB_SIZE,
): number[] {
  const ids = [...prompt];
  for (let i = 0; i < numTokens; i++) {
    const logits = toyLogitsOf(ids, vocabSize);
    ids.push(logits.indexOf(Math.max(...logits)));
  }
  return ids.slice(prompt.length);
}

/** What a runner reads back of a row of logits. */
export function sampleLogits(logits: Float32Array, wish: Omit<SampleRow, "token">): SampleLogits {
  const candidateIds = Uint32Array.from(best(logits, wish.numCandidates));
  return {
    candidateIds,
    candidateLogits: Float32Array.from(candidateIds, (id) => logits[id]),
    logSumExp: logSumExp(logits),
    targetLogit: wish.targetTokenId === undefined ? Number.NaN : logits[wish.targetTokenId],
    ...(wish.fullLogits && { logits }),
  };
}

/** Ids of the `count` highest logits, ties by lower id. */
function best(logits: Float32Array, count: number): number[] {
  const ids: number[] = [];
  for (const [id, logit] of logits.entries()) {
    if (ids.length === count && logit <= logits[ids[count - 1]]) continue;
    const place = ids.findLastIndex((other) => logits[other] >= logit) + 1;
    ids.splice(place, 0, id);
    if (ids.length > count) ids.pop();
  }
  return ids;
}

/** Natural logarithm of the sum of exp over the logits. */
export function logSumExp(logits: Float32Array): number {
  const max = Math.max(...logits);
  return max + Math.log(logits.reduce((sum, logit) => sum + Math.exp(logit - max), 0));
}

/** Logits from -4 to 4 in steps of 1/16, so that some tie. */
function toyLogits(state: number, vocabSize: number): Float32Array {
  return Float32Array.from({ length: vocabSize }, (_, id) => (mix(state, id) % 129) / 16 - 4);
}

function entryOf(tokenId: number, position: number): number {
  return mix(mix(1, tokenId), position);
}

/** A 32-bit hash of two numbers: the finalizer of MurmurHash3 over their sum. */
function mix(a: number, b: number): number {
  let hash = (Math.imul(a, 0x9e3779b1) + Math.imul(b, 0x85ebca77) + 0x27d4eb2f) >>> 0;
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35);
  return (hash ^ (hash >>> 16)) >>> 0;
}
