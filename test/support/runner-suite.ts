/** What every ModelRunner does with the models whose logits are known; run per device and adapter. */

import assert from "node:assert/strict";
import { after, describe, test } from "node:test";

import { openCheckpoint } from "../../core/model/checkpoint.ts";
import type { Checkpoint } from "../../core/model/checkpoint.ts";
import type { ModelRunner, StepBatch } from "../../router-service/engine/model-runner.ts";
import type { RunnerLimits } from "../../router-service/engine/runner-limits.ts";
import { DEMO_MODEL, TINY_MODEL } from "./cluster.ts";
import { readDemoGoldens, readTinyGoldens, readTinyRouting } from "./goldens.ts";

/** Makes a runner with f32 weights and an f32 wire, with all experts its own. */
export type RunnerFactory = (checkpoint: Checkpoint, limits: RunnerLimits) => Promise<ModelRunner>;

/** Part of a sequence in a step. */
export interface StepPart {
  readonly tokenIds: readonly number[];
  /** Position of the first of them. */
  readonly from: number;
  readonly blocks: readonly number[];
}

const LOGIT_TOLERANCE = 1e-3;
const NEVER = { signal: new AbortController().signal };

/** A step over parts of sequences that wants all logits of every token. */
export function batchOf(parts: readonly StepPart[], fullLogits = true): StepBatch {
  const tokens = parts.flatMap(({ tokenIds }) => tokenIds);
  return {
    tokenIds: Uint32Array.from(tokens),
    positions: Uint32Array.from(
      parts.flatMap(({ tokenIds, from }) => tokenIds.map((_, i) => from + i)),
    ),
    sequenceRows: Uint32Array.from(parts.flatMap(({ tokenIds }, row) => tokenIds.map(() => row))),
    blockTables: parts.map(({ blocks }) => blocks),
    samples: tokens.map((_, token) => ({ token, numCandidates: 1, fullLogits })),
  };
}

/** Decodes two sequences together, a token each per step. */
export async function decodeSteps(runner: ModelRunner, steps: number): Promise<void> {
  for (let position = 0; position < steps; position++) {
    const parts = [0, 1].map((row) => ({
      tokenIds: [(position * 7 + row) % 384],
      from: position,
      blocks: Array.from({ length: 8 }, (_, i) => row * 8 + i),
    }));
    await runner.forward(batchOf(parts, false), NEVER);
  }
}

/** Largest difference of two rows of logits. */
export function distance(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  assert.equal(actual.length, expected.length);
  let largest = 0;
  for (let i = 0; i < expected.length; i++) {
    const difference = Math.abs(actual[i] - expected[i]);
    if (!(difference <= largest)) largest = difference;
  }
  return largest;
}

/** Declares the suite. The demo model is left out where it would take minutes. */
export async function runnerSuite(
  name: string,
  create: RunnerFactory,
  demo: readonly string[],
): Promise<void> {
  const limits = {
    maxTokens: 128,
    maxSequences: 8,
    maxSamples: 128,
    maxModelLen: 512,
    numBlocks: 48,
  };
  const checkpoint = await openCheckpoint(TINY_MODEL);
  const runner = await create(checkpoint, limits);
  const goldens = await readTinyGoldens();

  describe(`${name} as a ModelRunner`, () => {
    after(async () => {
      runner.close();
      await checkpoint.close();
    });

    for (const [i, golden] of goldens.entries()) {
      test(`gives the tiny model's logits and routing of prompt ${i} (${golden.prompt.length} tokens)`, async () => {
        const part = { tokenIds: golden.prompt, from: 0, blocks: [7, 3, 11, 1, 40] };
        const result = await runner.forward(batchOf([part]), NEVER);
        for (const [t, expected] of golden.logits.entries()) {
          const far = distance(result.samples[t].logits ?? [], expected);
          assert.ok(far <= LOGIT_TOLERANCE, `token ${t}: ${far}`);
        }
        for (const [layer, expected] of (await readTinyRouting(i)).entries()) {
          const routing = result.routing.get(layer);
          assert.deepEqual([...(routing?.ids ?? [])], expected.ids, `layer ${layer}`);
          assert.ok(distance(routing?.weights ?? [], expected.weights) <= LOGIT_TOLERANCE);
        }
      });
    }

    test("gives the same logits to prompts in chunks beside other sequences that decode", async () => {
      const [, five, short, long] = goldens;
      const step = (parts: readonly StepPart[]) => runner.forward(batchOf(parts), NEVER);
      const [a, b] = [
        [20, 21, 22, 23, 24],
        [30, 31],
      ];
      await step([{ tokenIds: long.prompt.slice(0, 30), from: 0, blocks: a }]);
      const mixed = await step([
        { tokenIds: short.prompt.slice(0, 23), from: 0, blocks: b },
        { tokenIds: long.prompt.slice(30, 69), from: 30, blocks: a },
        { tokenIds: five.prompt, from: 0, blocks: [5] },
      ]);
      const decoded = await step([
        { tokenIds: long.prompt.slice(69), from: 69, blocks: a },
        { tokenIds: short.prompt.slice(23), from: 23, blocks: b },
      ]);
      const compare = (logits: Float32Array | undefined, expected: Float32Array) => {
        const far = distance(logits ?? [], expected);
        assert.ok(far <= LOGIT_TOLERANCE, String(far));
      };
      for (let t = 0; t < 23; t++) compare(mixed.samples[t].logits, short.logits[t]);
      for (let t = 30; t < 69; t++) compare(mixed.samples[23 + t - 30].logits, long.logits[t]);
      for (let t = 0; t < 5; t++) compare(mixed.samples[62 + t].logits, five.logits[t]);
      compare(decoded.samples[0].logits, long.logits[69]);
      compare(decoded.samples[1].logits, short.logits[23]);
    });

    test("gives candidates, log-sum-exp and a target's logit that fit the whole row", async () => {
      const [, , golden] = goldens;
      const plain = batchOf([{ tokenIds: golden.prompt, from: 0, blocks: [2, 4] }], false);
      const samples = [3, 9, 23].map((token, i) => ({
        token,
        numCandidates: [1, 20, 64][i],
        fullLogits: i === 1,
        targetTokenId: 100 + i,
      }));
      const result = await runner.forward({ ...plain, samples }, NEVER);
      for (const [i, { token, numCandidates }] of samples.entries()) {
        const row = golden.logits[token];
        const order = [...row.keys()].sort((x, y) => row[y] - row[x]).slice(0, numCandidates);
        const { candidateIds, candidateLogits, logSumExp, targetLogit, logits } = result.samples[i];
        assert.deepEqual([...candidateIds], order);
        assert.ok(
          distance(
            candidateLogits,
            order.map((id) => row[id]),
          ) <= LOGIT_TOLERANCE,
        );
        const exact = Math.log(row.reduce((sum, value) => sum + Math.exp(value), 0));
        assert.ok(Math.abs(logSumExp - exact) <= LOGIT_TOLERANCE);
        assert.ok(Math.abs(targetLogit - row[100 + i]) <= LOGIT_TOLERANCE);
        assert.equal(logits !== undefined, i === 1);
      }
    });

    test("refuses a step beyond its bounds by name and runs the next", async () => {
      const tokenIds = Array.from({ length: 129 }, () => 1);
      const blocks = [0, 1, 2, 3, 4, 5, 6, 7, 8];
      await assert.rejects(
        runner.forward(batchOf([{ tokenIds, from: 0, blocks }]), NEVER),
        /129 tokens, at most 128/,
      );
      const next = await runner.forward(
        batchOf([{ tokenIds: [246], from: 0, blocks: [0] }]),
        NEVER,
      );
      assert.ok(distance(next.samples[0].logits ?? [], goldens[0].logits[0]) <= LOGIT_TOLERANCE);
    });

    for (const prompt of demo) {
      test(`gives the demo model's logits of "${prompt}" and continues it greedily`, async () => {
        const [golden] = await readDemoGoldens([prompt]);
        const length = golden.token_ids.length + golden.greedy.ids.length;
        const model = await openCheckpoint(DEMO_MODEL);
        const numBlocks = Math.ceil(length / 16);
        const blocks = Array.from({ length: numBlocks }, (_, i) => numBlocks - 1 - i);
        const demoRunner = await create(model, {
          ...limits,
          maxTokens: 600,
          maxModelLen: 1024,
          numBlocks,
        });
        try {
          const first = batchOf([{ tokenIds: golden.token_ids, from: 0, blocks }], false);
          const samples = [
            { token: golden.token_ids.length - 1, numCandidates: 1, fullLogits: true },
          ];
          const result = await demoRunner.forward({ ...first, samples }, NEVER);
          const far = distance(result.samples[0].logits ?? [], golden.last_logits);
          assert.ok(far <= LOGIT_TOLERANCE, String(far));
          const ids = [result.samples[0].candidateIds[0]];
          while (ids.length < golden.greedy.ids.length) {
            const from = golden.token_ids.length + ids.length - 1;
            const step = batchOf([{ tokenIds: ids.slice(-1), from, blocks }], false);
            ids.push((await demoRunner.forward(step, NEVER)).samples[0].candidateIds[0]);
          }
          assert.deepEqual(ids, golden.greedy.ids);
        } finally {
          demoRunner.close();
          await model.close();
        }
      });
    }
  });
}
