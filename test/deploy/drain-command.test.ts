import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { once } from "node:events";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { test } from "node:test";
import { promisify } from "node:util";

import { childEnvironment } from "../../core/platform/config.ts";

/** What a router says of shard 1, question by question; then that there is none. */
const SAID = [
  { state: "draining", resident_bytes: 1000 },
  { state: "away", resident_bytes: 900 },
].map((shard) => Object.assign(shard, { rank: 1, draining: true, reason: null, epochs: [1] }));

test("drain --wait ends where the shard is gone that it waits for, and its progress with it", async (t) => {
  let asked = 0;
  const router = createServer(({ method }, response) => {
    const shards = method === "GET" ? SAID.slice(asked, ++asked) : [];
    response.setHeader("content-type", "application/json").end(JSON.stringify({ shards }));
  }).listen(0, "127.0.0.1");
  t.after(() => router.close());
  await once(router, "listening");
  const { port } = router.address() as AddressInfo;
  const script = join(import.meta.dirname, "../../deploy/switchyard.ts");
  const argv = [script, "drain", "1", "--wait", "--url", `http://127.0.0.1:${port}`];
  // Not forked: to a parent that listens, progress is told otherwise.
  const ended = promisify(execFile)(process.execPath, argv, {
    env: childEnvironment({ NODE_TEST_CONTEXT: undefined }),
    timeout: 20_000,
  });
  await assert.rejects(ended, {
    code: 1,
    // On a terminal, a bar that is not stopped keeps the process alive.
    stderr: /"percent":10,"msg":"draining stopped"[^]*\nswitchyard drain: shard 1 is gone\n$/,
  });
});
