/** What every ModelRunner does with the models whose logits are known; run per device and adapter. */

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";

import { type Checkpoint, openCheckpoint } from "../../core/model/checkpoint/checkpoint.ts";
import { BLOCK_SIZE, type ModelRunner } from "../../router-service/engine/model-runner.ts";
import type { RunnerLimits } from "../../router-service/engine/runner-limits.ts";
import { DEMO_MODEL, TINY_MODEL } from "../../bench/rig/cluster.ts";
import {
  goldenSuite,
  LOGIT_TOLERANCE,
  type RunnerFactory,
  type TestRunner,
} from "./golden-suite.ts";
import { type DemoGolden, readDemoGoldens, readTinyGoldens } from "./goldens.ts";
import { batchOf, distance, NEVER } from "./step-batch.ts";

const LIMITS: RunnerLimits = {
  maxTokens: 128,
  maxSequences: 8,
  maxSamples: 128,
  maxModelLen: 512,
  numBlocks: 48,
};

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
  const checkpoint = await openCheckpoint(TINY_MODEL);
  const runner = await create(checkpoint, LIMITS);
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
  });

  if (demo.length > 0) demoSuite(name, create, await readDemoGoldens(demo));
}

/** Declares that one runner of the demo model gives what is known of prompts, one after the other in the same blocks. */
function demoSuite(name: string, create: RunnerFactory, goldens: readonly DemoGolden[]): void {
  const blocksOf = ({ token_ids: prompt, greedy }: DemoGolden) =>
    Math.ceil((prompt.length + greedy.ids.length) / BLOCK_SIZE);
  const numBlocks = Math.max(...goldens.map(blocksOf));

  describe(`${name} with the demo model`, () => {
    let model: Checkpoint | undefined;
    let runner: TestRunner | undefined;
    before(async () => {
      model = await openCheckpoint(DEMO_MODEL);
      const limits = { ...LIMITS, maxTokens: 600, maxModelLen: 1024, numBlocks };
      runner = await create(model, limits);
    });
    after(async () => {
      await runner?.close();
      await model?.close();
    });

    for (const golden of goldens) {
      test(`gives the logits of "${golden.name}" and continues it greedily`, async () => {
        const opened = runner ?? assert.fail("no runner was made");
        const blocks = Array.from({ length: blocksOf(golden) }, (_, i) => numBlocks - 1 - i);
        const first = batchOf([{ tokenIds: golden.token_ids, from: 0, blocks }], false);
        const samples = [
          { token: golden.token_ids.length - 1, numCandidates: 1, fullLogits: true },
        ];
        const result = await opened.forward({ ...first, samples }, NEVER);
        const far = distance(result.samples[0].logits ?? [], golden.last_logits);
        assert.ok(far <= LOGIT_TOLERANCE, String(far));
        const ids = [result.samples[0].candidateIds[0]];
        while (ids.length < golden.greedy.ids.length) {
          const from = golden.token_ids.length + ids.length - 1;
          const step = batchOf([{ tokenIds: ids.slice(-1), from, blocks }], false);
          ids.push((await opened.forward(step, NEVER)).samples[0].candidateIds[0]);
        }
        assert.deepEqual(ids, golden.greedy.ids);
      });
    }
  });
}
