import assert from "node:assert/strict";
import { test } from "node:test";

import { readModelConfig } from "../../../core/model/load-config.ts";
import {
  checkMessageSize,
  LimitError,
  runnerLimits,
} from "../../../router-service/engine/runner-limits.ts";
import { DEMO_MODEL } from "../../../bench/rig/cluster.ts";

const config = await readModelConfig(DEMO_MODEL);
const settings = { maxNumSeqs: 8, maxNumBatchedTokens: 256 };

test("without --kv-blocks there is room for every sequence at full length", () => {
  const limits = runnerLimits({ ...settings, maxModelLen: 256 }, config);
  assert.equal(limits.numBlocks, (8 * 256) / 16);
  assert.equal(limits.maxModelLen, 256);
});

test("without --kv-blocks the cache takes at most 128 MiB, but holds one full sequence", () => {
  const many = runnerLimits({ ...settings, maxNumSeqs: 1024 }, config);
  const blockBytes = 6 * 16 * 2 * 64 * 4;
  assert.equal(many.numBlocks, Math.floor((128 * 2 ** 20) / blockBytes));
  const long = runnerLimits(settings, { ...config, maxPositions: 2 ** 20 });
  assert.equal(long.numBlocks, 2 ** 16);
});

test("on an adapter with small bindings the context is as long as a layer's cache in one of them, and says why", () => {
  // A position of a layer takes 512 bytes.
  const limits = runnerLimits(settings, config, 256 * 1024);
  assert.equal(limits.numBlocks, 32);
  assert.equal(limits.maxModelLen, 512);
  assert.equal(limits.contextLimitedBy, "the adapter's largest binding");
  assert.equal(runnerLimits(settings, config).contextLimitedBy, undefined);
  assert.equal(runnerLimits({ ...settings, kvBlocks: 8 }, config).contextLimitedBy, "--kv-blocks");
  // A cache for every sequence gives way first.
  const whole = runnerLimits(settings, config, 2048 * 512);
  assert.equal(whole.maxModelLen, 2048);
  assert.equal(whole.contextLimitedBy, undefined);
});

test("flags whose cache does not fit a binding are refused by name and numbers", () => {
  assert.throws(
    () => runnerLimits({ ...settings, maxModelLen: 513 }, config, 256 * 1024),
    /--max-model-len 513: 32 KV blocks hold 512 tokens, bound by the adapter's largest binding/,
  );
  assert.throws(
    () => runnerLimits({ ...settings, kvBlocks: 33 }, config, 256 * 1024),
    /--kv-blocks 33: the KV cache of a layer takes 270336 bytes, the adapter's largest binding 262144/,
  );
  assert.throws(() => runnerLimits(settings, config, 4096), LimitError);
});

test("by default one full sequence takes at most 4 GiB; a length that is asked for is had", () => {
  const long = { ...config, maxPositions: 2 ** 22 };
  const limits = runnerLimits(settings, long);
  assert.equal(limits.numBlocks, Math.floor(2 ** 32 / (6 * 16 * 512)));
  assert.match(limits.contextLimitedBy ?? "", /--kv-blocks/);
  assert.equal(runnerLimits({ ...settings, maxModelLen: 2 ** 22 }, long).maxModelLen, 2 ** 22);
});

test("the context is never longer than the cache", () => {
  assert.equal(runnerLimits({ ...settings, kvBlocks: 14 }, config).maxModelLen, 14 * 16);
});

test("a context beyond the model's positions, or beyond the cache asked for, is refused with both numbers", () => {
  assert.throws(
    () => runnerLimits({ ...settings, maxModelLen: 4096 }, config),
    (error) => {
      assert.ok(error instanceof LimitError);
      assert.match(error.message, /4096.*2048/);
      return true;
    },
  );
  const both = { ...settings, maxModelLen: 512, kvBlocks: 14 };
  assert.throws(() => runnerLimits(both, config), /512.*14 KV blocks hold 224/);
});

test("samples of a step have room for every sequence and a chunk of prompt log-probabilities", () => {
  assert.equal(runnerLimits(settings, config).maxSamples, 64);
  assert.equal(runnerLimits({ ...settings, maxNumSeqs: 128 }, config).maxSamples, 128);
  assert.equal(runnerLimits({ maxNumSeqs: 4, maxNumBatchedTokens: 16 }, config).maxSamples, 16);
});

test("a step whose rows do not fit one message to a shard is refused with both sizes", () => {
  const limits = { ...runnerLimits(settings, config), maxTokens: 40_000 };
  checkMessageSize(limits, config, 2 ** 28);
  const wide = { ...config, hiddenSize: 2048 };
  assert.throws(
    () => checkMessageSize(limits, wide, 2 ** 28),
    /40000: a dispatch of 3\d+ bytes.*268435456/,
  );
});
