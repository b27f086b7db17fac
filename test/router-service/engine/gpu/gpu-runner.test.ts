import assert from "node:assert/strict";
import { after, test } from "node:test";

import { openGpu } from "../../../../core/gpu/device.ts";
import { createGpuRunner } from "../../../../router-service/engine/gpu/gpu-runner.ts";
import { gpuRunnerFactory } from "../../../support/gpu-runner-factory.ts";
import { createdDuring } from "../../../support/created-objects.ts";
import { decodeSteps, runnerSuite } from "../../../support/runner-suite.ts";
import { openTiny, SMALL_LIMITS } from "../../../support/tiny-checkpoint.ts";
import { batchOf } from "../../../support/step-batch.ts";

/** All goldens of the demo model. */
const GOLDENS = [
  "books",
  "dialogue",
  "facts",
  "python",
  "javascript",
  "maths",
  "long_python",
  "maths_fewshot",
  "chat",
  "one_token",
];

const gpu = await openGpu();
after(() => gpu.close());

await runnerSuite("llvmpipe", gpuRunnerFactory(gpu), GOLDENS);

test("100 decode steps with local experts create nothing on the device but their command encoders", async (t) => {
  const checkpoint = await openTiny(t);
  const runner = await gpuRunnerFactory(gpu)(checkpoint, SMALL_LIMITS);
  const created = await createdDuring(gpu.device, () => decodeSteps(runner, 100));
  assert.equal(created.filter((name) => name === "createCommandEncoder").length, 100);
  assert.deepEqual(new Set(created), new Set(["createCommandEncoder"]));
  runner.close();
});

test("a token's logits have the same bits alone, in a batch of 8, and in any chunks of its prompt", async (t) => {
  const checkpoint = await openTiny(t);
  const limits = { ...SMALL_LIMITS, maxTokens: 64, maxSamples: 64, maxSequences: 8 };
  const runner = await gpuRunnerFactory(gpu, { weights: "f16", wire: "f16" })(checkpoint, limits);
  const prompt = Array.from({ length: 20 }, (_, i) => (i * 37 + 5) % 384);
  const blocksOf = (row: number) => [2 * row, 2 * row + 1];
  const part = (row: number, from: number, to: number) => ({
    tokenIds: prompt.slice(from, to),
    from,
    blocks: blocksOf(row),
  });
  const signal = { signal: new AbortController().signal };
  const whole = await runner.forward(batchOf([part(0, 0, 20)]), signal);
  for (let from = 0; from < 20; from += 3) {
    const { samples } = await runner.forward(batchOf([part(1, from, from + 3)]), signal);
    for (const [i, { logits }] of samples.entries()) {
      assert.deepEqual(logits, whole.samples[from + i].logits, `token ${from + i} in a chunk of 3`);
    }
  }
  const rows = [0, 1, 2, 3, 4, 5, 6, 7];
  await runner.forward(batchOf(rows.slice(2, 5).map((row) => part(row, 0, 19))), signal);
  await runner.forward(batchOf(rows.slice(5).map((row) => part(row, 0, 19))), signal);
  const together = await runner.forward(batchOf(rows.map((row) => part(row, 19, 20))), signal);
  for (const row of rows) {
    assert.deepEqual(together.samples[row].logits, whole.samples[19].logits, `row ${row}`);
  }
  runner.close();
});

test("a step started before the one in flight is read gives the logits of one that is told the token", async (t) => {
  const checkpoint = await openTiny(t);
  const runner = await gpuRunnerFactory(gpu)(checkpoint, SMALL_LIMITS);
  const signal = { signal: new AbortController().signal };
  const prompts = [
    { tokenIds: [3, 1, 4, 1, 5], from: 0, blocks: [0] },
    { tokenIds: [2, 7, 1], from: 0, blocks: [1] },
  ];
  const next = (tokenIds: readonly number[]) =>
    batchOf(
      prompts.map((part, i) => ({ ...part, from: part.tokenIds.length, tokenIds: [tokenIds[i]] })),
    );
  const alone = await runner.forward(batchOf(prompts), signal);
  const first = runner.forward(batchOf(prompts), signal);
  // Rows of the first step's samples: one per token, the last of each prompt counts.
  const ahead = runner.forward({ ...next([4, 7]), follows: true }, signal);
  const { samples } = await first;
  for (const [row, { logits }] of alone.samples.entries()) {
    assert.deepEqual(samples[row].logits, logits, `row ${row} of the step in flight`);
  }
  const told = next([samples[4].candidateIds[0], samples[7].candidateIds[0]]);
  const following = await ahead;
  const expected = await runner.forward(told, signal);
  for (const row of [0, 1]) {
    assert.deepEqual(following.samples[row].logits, expected.samples[row].logits, `row ${row}`);
  }
  runner.close();
});

test("a KV cache that no buffer of the device can hold is refused with bytes and limit", async (t) => {
  const checkpoint = await openTiny(t);
  const limits = {
    maxTokens: 16,
    maxSequences: 4,
    maxSamples: 16,
    maxModelLen: 512,
    numBlocks: 4_000_000,
  };
  await assert.rejects(
    createGpuRunner(gpu, {
      checkpoint,
      weights: "f32",
      wire: "f32",
      limits,
      experts: { kind: "remote", runExperts: () => assert.fail("not reached"), microBatches: "1" },
    }),
    /KV cache of layer 0, 4000000 blocks.*needs 16384000000 bytes.*at most \d+/,
  );
});
