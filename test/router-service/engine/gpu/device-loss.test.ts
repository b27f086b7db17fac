import assert from "node:assert/strict";
import { test } from "node:test";

import { openGpu } from "../../../../core/gpu/device.ts";
import { createEngine } from "../../../../router-service/engine/engine.ts";
import { engineRequest } from "../../../support/engine-requests.ts";
import { openTiny, SMALL_LIMITS } from "../../../support/tiny-checkpoint.ts";
import { gpuRunnerFactory } from "../../../support/gpu-runner-factory.ts";

test("a GPU that is lost in mid-answer fails the request and says that the engine can not go on", async (t) => {
  const gpu = await openGpu();
  const checkpoint = await openTiny(t);
  const engine = createEngine({
    runner: await gpuRunnerFactory(gpu)(checkpoint, SMALL_LIMITS),
    vocabSize: checkpoint.config.vocabSize,
    eosTokenIds: [],
    maxModelLen: 256,
    maxNumSeqs: 4,
    maxNumBatchedTokens: 16,
    maxQueue: 4,
    requestTimeoutMs: 60_000,
  });
  let numTokens = 0;
  await assert.rejects(
    async () => {
      for await (const event of engine.submit(engineRequest([71, 267, 316], { maxTokens: 200 }))) {
        if (event.type !== "token") continue;
        numTokens++;
        if (numTokens === 3) gpu.device.destroy();
      }
    },
    { name: "UnavailableError" },
  );
  assert.ok(numTokens >= 3 && numTokens < 200, `${numTokens} tokens`);
  assert.match(await engine.lost, /device/);
  const refused = async () => {
    for await (const event of engine.submit(engineRequest([1]))) assert.fail(event.type);
  };
  await assert.rejects(refused, { name: "UnavailableError" });
  await engine.close();
});
