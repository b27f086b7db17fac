import assert from "node:assert/strict";
import { test } from "node:test";

import { streamCompletion } from "../support/api.ts";
import { DEMO_MODEL } from "../support/cluster.ts";
import { startService } from "../support/service-process.ts";

test("a router that is stopped in mid-stream ends the stream with an error and exits 0 in time", async (t) => {
  const router = await startService({
    name: "router",
    script: "router-service/main.ts",
    argv: ["--model", DEMO_MODEL, "--device", "cpu", "--http-port", "0", "--grpc-port", "0"],
  });
  t.after(() => router.stop());
  const url = `http://127.0.0.1:${router.ready.httpPort}`;
  const body = { prompt: [1, 2, 3], max_tokens: 900, n: 8, ignore_eos: true };
  let numChunks = 0;
  let code: string | null | undefined;
  for await (const chunk of streamCompletion(url, body)) {
    if (numChunks++ === 0) router.kill("SIGTERM");
    code = chunk?.error?.code;
  }
  assert.equal(code, "unavailable", `${numChunks} chunks came`);
  assert.deepEqual(await router.exited, { code: 0, signal: null }, router.output());
});
