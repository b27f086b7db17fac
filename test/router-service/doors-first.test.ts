import assert from "node:assert/strict";
import { test } from "node:test";

import { DEMO_MODEL } from "../../bench/rig/cluster.ts";
import { startService } from "../../bench/rig/service-process.ts";
import { freePort } from "../../deploy/redis-process.ts";
import { waitFor } from "../../bench/rig/wait-for.ts";

test("a router whose shards have not been seen yet says so by /health and 503, and serves when they come", async (t) => {
  const [httpPort, shardPort] = [await freePort(), await freePort()];
  const model = ["--model", DEMO_MODEL, "--device", "cpu"];
  const router = startService({
    name: "router",
    script: "router-service/main.ts",
    argv: [
      ...model,
      "--http-port",
      String(httpPort),
      "--grpc-port",
      "0",
      "--shards",
      `127.0.0.1:${shardPort}`,
    ],
  });
  t.after(async () => (await router).stop());
  const url = `http://127.0.0.1:${httpPort}`;
  const complete = () =>
    fetch(`${url}/v1/completions`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ prompt: [1, 2, 3], max_tokens: 2 }),
    });
  const answers = async () => (await fetch(`${url}/health`).catch(() => undefined))?.status;
  await waitFor("the doors are open", async () => (await answers()) === 503);
  const refused = await complete();
  assert.equal(refused.status, 503);
  assert.equal(((await refused.json()) as { error: { code: string } }).error.code, "unavailable");

  const shard = await startService({
    name: "shard",
    script: "expert-service/main.ts",
    argv: [...model, "--rank", "0", "--port", String(shardPort)],
  });
  t.after(() => shard.stop());
  await waitFor("the cluster is whole", async () => (await answers()) === 200);
  assert.equal((await complete()).status, 200);
});
