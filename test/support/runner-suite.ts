/** What every ModelRunner does with the models whose logits are known; run per device and adapter. */

import assert from "node:assert/strict";
import { after, describe, test } from "node:test";

import { openCheckpoint } from "../../core/model/checkpoint/checkpoint.ts";
import type { ModelRunner } from "../../router-service/engine/model-runner.ts";
import { DEMO_MODEL, TINY_MODEL } from "../../bench/rig/cluster.ts";
import { goldenSuite, LOGIT_TOLERANCE, type RunnerFactory } from "./golden-suite.ts";
import { readDemoGoldens, readTinyGoldens } from "./goldens.ts";
import { batchOf, distance, NEVER } from "./step-batch.ts";

/** Decodes two sequences together, a token each per step. */
export async function decodeSteps(
  runner: Pick<ModelRunner, "forward">,
  steps: number,
): Promise<void> {
  for (let position = 0; position < steps; position++) {
    const parts = [0, 1].map((row) => ({
      tokenIds: [(position * 7 + row) % 384],
      from: position,
      blocks: Array.from({ length: 8 }, (_, i) => row * 8 + i),
    }));
    await runner.forward(batchOf(parts, false), NEVER);
  }
}

/** Declares the suite. The demo model is left out where it would take minutes. */
export async function runnerSuite(
  name: string,
  create: RunnerFactory,
  demo: readonly string[],
): Promise<void> {
  await goldenSuite(name, TINY_MODEL, create);
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
      await runner.close();
      await checkpoint.close();
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
          await demoRunner.close();
          await model.close();
        }
      });
    }
  });
}
