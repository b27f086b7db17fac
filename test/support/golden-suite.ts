/** What every ModelRunner gives for a tiny checkpoint whose logits, routing and continuations are known. */

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";

import { type Checkpoint, openCheckpoint } from "../../core/model/checkpoint/checkpoint.ts";
import { BLOCK_SIZE, type ModelRunner } from "../../router-service/engine/model-runner.ts";
import type { RunnerLimits } from "../../router-service/engine/runner-limits.ts";
import { type Golden, readGoldens } from "./goldens.ts";
import { batchOf, distance, NEVER } from "./step-batch.ts";

/** What the suites ask of a runner; it may take its time to close. */
export type TestRunner = Pick<ModelRunner, "forward"> & { close(): void | Promise<void> };

/** Makes a runner with f32 weights and an f32 wire; it has all experts of the checkpoint at hand. */
export type RunnerFactory = (checkpoint: Checkpoint, limits: RunnerLimits) => Promise<TestRunner>;

/** Largest difference of a logit, or of a top-k weight, from its golden. */
export const LOGIT_TOLERANCE = 1e-3;

const LIMITS: RunnerLimits = {
  maxTokens: 128,
  maxSequences: 8,
  maxSamples: 128,
  maxModelLen: 128,
  numBlocks: 48,
};

/** Positions [from, to) of a golden's prompt. */
interface PromptPart {
  readonly golden: Golden;
  readonly from: number;
  readonly to: number;
}

/** Declares the suite for the checkpoint in a directory, a path from the repository's root. */
export async function goldenSuite(
  name: string,
  directory: string,
  create: RunnerFactory,
): Promise<void> {
  const goldens = await readGoldens(directory);
  const blocks = scatteredBlocks(goldens);

  describe(`${name} on ${directory}`, () => {
    let checkpoint: Checkpoint | undefined;
    let runner: TestRunner | undefined;
    const opened = () => runner ?? assert.fail("no runner was made");
    before(async () => {
      checkpoint = await openCheckpoint(directory);
      runner = await create(checkpoint, LIMITS);
    });
    after(async () => {
      await runner?.close();
      await checkpoint?.close();
    });

    /** Runs parts of prompts in one step and compares logits and routing of every token. */
    const step = async (parts: readonly PromptPart[]) => {
      const batch = batchOf(
        parts.map(({ golden, from, to }) => ({
          tokenIds: golden.prompt.slice(from, to),
          from,
          blocks: blocks.get(golden) ?? [],
        })),
      );
      const { samples, routing } = await opened().forward(batch, NEVER);
      const known = parts.flatMap((part) => knownOf(part));
      assert.deepEqual([...routing.keys()], [...goldens[0].routing.keys()]);
      for (const [t, { at, logits, experts }] of known.entries()) {
        const far = distance(samples[t].logits ?? [], logits);
        assert.ok(far <= LOGIT_TOLERANCE, `${at}: a logit is off by ${far}`);
        for (const [layer, { ids, weights, topK }] of routing) {
          const actual = mixOf(ids, weights, t, topK);
          const expected = experts.get(layer) ?? [];
          assert.deepEqual(
            actual.map(([id]) => id),
            expected.map(([id]) => id),
            `${at}, layer ${layer}`,
          );
          const off = distance(
            actual.map(([, weight]) => weight),
            expected.map(([, weight]) => weight),
          );
          assert.ok(off <= LOGIT_TOLERANCE, `${at}, layer ${layer}: a weight is off by ${off}`);
        }
      }
    };

    for (const [i, golden] of goldens.entries()) {
      const { length } = golden.prompt;
      test(`gives logits and routing of prompt ${i} (${length} tokens)`, () =>
        step([{ golden, from: 0, to: length }]));
    }

    test("gives the same to prompts in chunks beside other sequences that decode", async () => {
      const others = goldens.slice(0, -1).filter(({ prompt }) => prompt.length > 1);
      const [long] = goldens.slice(-1);
      const middle = Math.floor(long.prompt.length / 2) - 5;
      const allBut = (golden: Golden) => ({ golden, from: 0, to: golden.prompt.length - 1 });
      const last = (golden: Golden) => ({
        golden,
        from: golden.prompt.length - 1,
        to: golden.prompt.length,
      });
      await step([{ golden: long, from: 0, to: middle }]);
      await step([...others.map(allBut), { ...allBut(long), from: middle }]);
      await step([last(long), ...others.map(last)]);
    });

    test("continues all prompts greedily in one batch", async () => {
      const sequences = goldens.map((golden) => ({
        golden,
        ids: [...golden.prompt],
        computed: 0,
      }));
      for (let length = 0; length < goldens[0].greedy.length; length++) {
        const parts = sequences.map(({ golden, ids, computed }) => ({
          tokenIds: ids.slice(computed),
          from: computed,
          blocks: blocks.get(golden) ?? [],
        }));
        const { samples } = await opened().forward(batchOf(parts, false), NEVER);
        let end = 0;
        for (const [row, sequence] of sequences.entries()) {
          end += parts[row].tokenIds.length;
          sequence.computed = sequence.ids.length;
          sequence.ids.push(samples[end - 1].candidateIds[0]);
        }
      }
      for (const [i, { golden, ids }] of sequences.entries()) {
        assert.deepEqual(ids.slice(golden.prompt.length), golden.greedy, `prompt ${i}`);
      }
    });
  });
}

/** Block tables for prompts and continuations, out of order. */
function scatteredBlocks(goldens: readonly Golden[]): Map<Golden, readonly number[]> {
  let next = 0;
  return new Map(
    goldens.map((golden) => {
      const length = Math.ceil((golden.prompt.length + golden.greedy.length) / BLOCK_SIZE);
      const table = Array.from({ length }, () => (7 * next++ + 3) % LIMITS.numBlocks);
      return [golden, table];
    }),
  );
}

/** What is known of each token of a part. */
function knownOf({ golden, from, to }: PromptPart) {
  return Array.from({ length: to - from }, (_, i) => {
    const t = from + i;
    const experts = new Map(
      [...golden.routing].map(([layer, { ids, weights }]) => [
        layer,
        mixOf(ids, weights, t, ids.length / golden.prompt.length),
      ]),
    );
    return { at: `token ${t} of ${golden.prompt.length}`, logits: golden.logits[t], experts };
  });
}

/** A token's experts and their weights by id: in which order they were chosen is the runner's own. */
function mixOf(
  ids: ArrayLike<number>,
  weights: ArrayLike<number>,
  token: number,
  topK: number,
): (readonly [number, number])[] {
  return Array.from(
    { length: topK },
    (_, k) => [ids[token * topK + k], weights[token * topK + k]] as const,
  ).sort(([a], [b]) => a - b);
}
