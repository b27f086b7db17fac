import assert from "node:assert/strict";
import { test } from "node:test";

import { TINY_MODEL } from "../../bench/rig/cluster.ts";
import { expertBufferBytes } from "../../core/expert-memory.ts";
import type { WeightsDtype } from "../../core/expert-device.ts";
import { readModelConfig } from "../../core/model/load-config.ts";
import { routerConfigSchema } from "../../router-service/config.ts";
import { routerMemory } from "../../router-service/engine/router-memory.ts";
import { LimitError, runnerLimits } from "../../router-service/engine/runner-limits.ts";
import { createLocalMemory, type LocalMemorySettings } from "../../router-service/local-memory.ts";
import { EXPERT_BYTES, NUM_EXPERTS, TINY_EXPERTS_BYTES } from "../support/tiny-experts.ts";

const config = await readModelConfig(TINY_MODEL);
const LIMITS = runnerLimits({ maxNumSeqs: 4, maxNumBatchedTokens: 32, kvBlocks: 64 }, config);
const LAYER_BYTES = NUM_EXPERTS * EXPERT_BYTES;

type Flags = Partial<LocalMemorySettings["settings"]>;

function memoryOf(flags: Flags, others: Partial<LocalMemorySettings> = {}) {
  const said: object[] = [];
  const memory = createLocalMemory({
    checkpoint: { config, overlay: undefined, storedExperts: undefined },
    settings: routerConfigSchema.parse(flags),
    limits: LIMITS,
    gpu: { shaderF16: true },
    isRemote: true,
    logger: { info: (facts: object) => void said.push(facts) },
    ...others,
  });
  return { memory, said };
}

/** What the router takes beside experts. */
const takenIn = (weights: WeightsDtype) =>
  routerMemory(config, weights, LIMITS, true, Infinity).total;
/** A limit that leaves so much for experts and their moves. */
const leaving = (bytes: number, weights: WeightsDtype = "f32") =>
  takenIn(weights) + expertBufferBytes(config) + bytes;

test("without a memory limit experts get what --local-experts says, and nothing without that", () => {
  for (const [flags, bytes] of [
    [{}, 0],
    [{ localExperts: 0 }, 0],
    [{ localExperts: 5000 }, 5000],
  ] as const) {
    const { memory, said } = memoryOf(flags);
    assert.deepEqual([memory.isOffered, memory.bytes()], [bytes > 0, bytes]);
    assert.deepEqual(said, []);
  }
});

test("experts get what a memory limit leaves, but for a layer's slots that moves take on a GPU", () => {
  const routerMemoryLimit = leaving(3 * LAYER_BYTES);
  const flags = { routerMemoryLimit, weights: "f32" } as const;
  const { memory, said } = memoryOf(flags);
  assert.deepEqual([memory.isOffered, memory.bytes()], [true, 2 * LAYER_BYTES]);
  const taken = takenIn("f32");
  const facts = { routerMemoryLimit, weights: "f32", taken, leftForExperts: 2 * LAYER_BYTES };
  assert.deepEqual(said, [facts]);
  assert.equal(memoryOf(flags, { gpu: undefined }).memory.bytes(), 3 * LAYER_BYTES);
  // Less than two layers: half of it.
  const small = memoryOf({ ...flags, routerMemoryLimit: leaving(LAYER_BYTES) });
  assert.equal(small.memory.bytes(), LAYER_BYTES / 2);
  assert.equal(memoryOf({ ...flags, routerMemoryLimit: takenIn("f32") }).memory.bytes(), 0);
});

test("one lane of buffers less is more for experts", () => {
  const flags = { routerMemoryLimit: leaving(3 * LAYER_BYTES), weights: "f32" } as const;
  const one = memoryOf({ ...flags, microBatches: "1" }).memory.bytes();
  assert.ok(one > memoryOf(flags).memory.bytes());
});

test("of --local-experts and what a memory limit leaves, the smaller counts", () => {
  const flags = { routerMemoryLimit: leaving(3 * LAYER_BYTES), weights: "f32" } as const;
  for (const [localExperts, bytes] of [
    [0, 0],
    [EXPERT_BYTES, EXPERT_BYTES],
    [9 * LAYER_BYTES, 2 * LAYER_BYTES],
  ]) {
    const { memory } = memoryOf({ ...flags, localExperts });
    assert.deepEqual([memory.isOffered, memory.bytes()], [bytes > 0, bytes]);
  }
});

test("a limit below what the router takes beside experts is refused with the parts, also without local experts", () => {
  const taken = takenIn("f32");
  for (const flags of [{}, { localExperts: 0 }]) {
    assert.throws(
      () => memoryOf({ ...flags, routerMemoryLimit: taken - 1, weights: "f32" }),
      (error: Error) =>
        error instanceof LimitError &&
        error.message.startsWith(
          `--router-memory-limit ${taken - 1}: the router takes ${taken} bytes, `,
        ) &&
        / of KV cache, 64 blocks, /.test(error.message),
    );
  }
});

test("until the cluster decides on the dtype of weights the wider one is counted", () => {
  const routerMemoryLimit = leaving(3 * LAYER_BYTES);
  const { memory, said } = memoryOf({ routerMemoryLimit });
  assert.equal(memory.bytes(), 2 * LAYER_BYTES);
  assert.deepEqual(said, []);
  memory.decided("f16");
  const narrow = takenIn("f32") - takenIn("f16") + 3 * LAYER_BYTES - LAYER_BYTES / 2;
  assert.equal(memory.bytes(), narrow);
  assert.equal(said.length, 1);

  const tight = memoryOf({ routerMemoryLimit: takenIn("f16") }).memory;
  assert.equal(tight.bytes(), 0);
  tight.decided("f16");
  assert.throws(() => tight.decided("f32"), /--router-memory-limit .* bytes of weights in f32/);
});

test("without shards the limit is for all experts too", () => {
  const whole = { isRemote: false, gpu: undefined };
  const flags = { routerMemoryLimit: leaving(TINY_EXPERTS_BYTES), weights: "f32" } as const;
  assert.equal(memoryOf(flags, whole).memory.isOffered, false);
  assert.throws(
    () => memoryOf({ ...flags, routerMemoryLimit: takenIn("f32") }, whole),
    /bytes, .* of experts$/,
  );
});
