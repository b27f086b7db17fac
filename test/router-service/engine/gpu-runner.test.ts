import assert from "node:assert/strict";
import { after, test } from "node:test";

import { openGpu } from "../../../core/gpu/device.ts";
import { openCheckpoint } from "../../../core/model/checkpoint.ts";
import { createGpuRunner } from "../../../router-service/engine/gpu-runner.ts";
import { TINY_MODEL } from "../../support/cluster.ts";
import { gpuRunnerFactory } from "../../support/gpu-runner-factory.ts";
import { batchOf, runnerSuite } from "../../support/runner-suite.ts";

const gpu = await openGpu();
after(() => gpu.close());

await runnerSuite("llvmpipe", gpuRunnerFactory(gpu), ["chat", "one_token", "long_code"]);

test("100 decode steps create nothing on the device but their command encoders", async () => {
  const checkpoint = await openCheckpoint(TINY_MODEL);
  const limits = {
    maxTokens: 16,
    maxSequences: 4,
    maxSamples: 16,
    maxModelLen: 256,
    numBlocks: 32,
  };
  const runner = await gpuRunnerFactory(gpu)(checkpoint, limits);
  const created: string[] = [];
  const { device } = gpu;
  const prototype = Object.getPrototypeOf(device) as Record<string, unknown>;
  const names = Object.getOwnPropertyNames(prototype).filter((name) => name.startsWith("create"));
  assert.ok(names.includes("createBuffer") && names.includes("createBindGroup"), names.join());
  for (const name of names) {
    const original = Reflect.get(device, name) as (...args: unknown[]) => unknown;
    Object.defineProperty(device, name, {
      configurable: true,
      value: (...args: unknown[]) => {
        created.push(name);
        return original.apply(device, args);
      },
    });
  }
  try {
    for (let position = 0; position < 100; position++) {
      const parts = [0, 1].map((row) => ({
        tokenIds: [(position * 7 + row) % 384],
        from: position,
        blocks: Array.from({ length: 8 }, (_, i) => row * 8 + i),
      }));
      await runner.forward(batchOf(parts, false), { signal: new AbortController().signal });
    }
  } finally {
    for (const name of names) Reflect.deleteProperty(device, name);
    runner.close();
    await checkpoint.close();
  }
  assert.equal(created.filter((name) => name === "createCommandEncoder").length, 100);
  assert.deepEqual(
    created.filter((name) => name !== "createCommandEncoder"),
    [],
  );
});

test("a KV cache that no buffer of the device can hold is refused with bytes and limit", async () => {
  const checkpoint = await openCheckpoint(TINY_MODEL);
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
      experts: { kind: "remote", runExperts: () => assert.fail("not reached") },
    }),
    /KV cache of layer 0, 4000000 blocks.*needs 16384000000 bytes.*at most \d+/,
  );
  await checkpoint.close();
});
