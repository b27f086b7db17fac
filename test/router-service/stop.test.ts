import assert from "node:assert/strict";
import { fork } from "node:child_process";
import { once } from "node:events";
import { createServer, type AddressInfo } from "node:net";
import { test } from "node:test";

import { childEnvironment } from "../../core/platform/config.ts";
import { freePort } from "../../deploy/redis-process.ts";
import { streamCompletion } from "../../bench/rig/api.ts";
import { DEMO_MODEL, TINY_MODEL } from "../../bench/rig/cluster.ts";
import { runCommand } from "../support/run-command.ts";
import { startService } from "../../bench/rig/service-process.ts";
import { waitFor } from "../../bench/rig/wait-for.ts";

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

const CPU_MODEL = ["--model", DEMO_MODEL, "--device", "cpu"];
const FREE_PORTS = ["--http-port", "0", "--grpc-port", "0"];

const STOPPED_EARLY: readonly [
  when: string,
  argv: () => Promise<readonly string[]>,
  said: RegExp,
][] = [
  [
    "while it waits for its shards",
    async () => ["--shards", `127.0.0.1:${await freePort()}`],
    /shard not ready/,
  ],
  ["while it loads its weights", async () => [], /loading weights/],
];

for (const [when, argv, said] of STOPPED_EARLY) {
  test(`a router that is stopped ${when} exits 0 without a fatal line`, async (t) => {
    const httpPort = await freePort();
    const router = fork(
      "router-service/main.ts",
      [...CPU_MODEL, ...(await argv()), "--http-port", String(httpPort), "--grpc-port", "0"],
      { silent: true, env: childEnvironment({ NODE_TEST_CONTEXT: undefined }) },
    );
    t.after(() => router.kill("SIGKILL"));
    let output = "";
    router.stderr?.on("data", (bytes: Buffer) => (output += bytes.toString()));
    await waitFor(String(said), () => said.test(output), 30_000);
    router.kill("SIGTERM");
    const [code] = (await once(router, "close", {
      signal: AbortSignal.timeout(15_000),
    })) as unknown[];
    assert.equal(code, 0, output);
    assert.doesNotMatch(output, /fatal|uncaught/);
  });
}

const MISTAKES: readonly [name: string, script: string, argv: readonly string[], said: RegExp][] = [
  ["no model", "router-service/main.ts", ["--model", "/nowhere", ...FREE_PORTS], /config\.json/],
  ["no model", "expert-service/main.ts", ["--model", "/nowhere", "--port", "0"], /config\.json/],
  [
    "a context beyond the model's",
    "router-service/main.ts",
    [...CPU_MODEL, ...FREE_PORTS, "--max-model-len", "100000"],
    /--max-model-len 100000/,
  ],
  [
    "a KV cache that its GPU can not hold",
    "router-service/main.ts",
    ["--model", DEMO_MODEL, "--device", "webgpu", ...FREE_PORTS, "--kv-blocks", "4000000"],
    /--kv-blocks 4000000: the KV cache of a layer takes \d+ bytes, the adapter.s largest binding \d+/,
  ],
  [
    "a KV cache that its host can not hold",
    "router-service/main.ts",
    ["--model", TINY_MODEL, "--device", "cpu", ...FREE_PORTS, "--kv-blocks", "99999999999"],
    /--kv-blocks 99999999999: no memory for a layer's KV cache of \d+ bytes/,
  ],
  [
    "an adapter that is not there",
    "expert-service/main.ts",
    ["--model", DEMO_MODEL, "--device", "webgpu", "--port", "0", "--adapter", "nonsense"],
    /no adapter named like .*nonsense.* \(--adapter\); there are: .*llvmpipe/,
  ],
];

for (const [name, script, argv, said] of MISTAKES) {
  test(`${script} with ${name} ends with one clear line and exit code 1`, async () => {
    const { code, stderr } = await runCommand(script, argv);
    assertFatal(code, stderr, said);
  });
}

test("an address that is taken ends either service with one clear line and exit code 1", async (t) => {
  const other = createServer().listen(0, "127.0.0.1");
  t.after(() => other.close());
  await once(other, "listening");
  const { port } = other.address() as AddressInfo;
  const [http, grpc, shard] = await Promise.all([
    runCommand("router-service/main.ts", [...CPU_MODEL, "--grpc-port=0", `--http-port=${port}`]),
    runCommand("router-service/main.ts", [...CPU_MODEL, "--http-port=0", `--grpc-port=${port}`]),
    runCommand("expert-service/main.ts", [...CPU_MODEL, `--port=${port}`]),
  ]);
  for (const [{ code, stderr }, flag] of [
    [http, "--http-port"],
    [grpc, "--grpc-port"],
    [shard, "--port"],
  ] as const) {
    const said = `can not listen on 127.0.0.1:${port}: another program .* with ${flag}, .*EADDRINUSE`;
    assertFatal(code, stderr, new RegExp(said));
  }
});

/** Fails unless it ended with 1 and one fatal line that says this, without a stack anywhere. */
function assertFatal(code: number | null, stderr: string, said: RegExp): void {
  assert.equal(code, 1, stderr);
  const fatal = stderr.split("\n").filter((line) => line.includes('"level":"fatal"'));
  assert.equal(fatal.length, 1, stderr);
  assert.match(fatal[0], said);
  assert.match(fatal[0], /can not start/);
  assert.doesNotMatch(stderr, /"stack"|\n {4}at /);
}
