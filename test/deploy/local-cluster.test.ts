import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { connect } from "node:net";
import { join } from "node:path";
import { after, test } from "node:test";

import { childEnvironment } from "../../core/platform/config.ts";
import { waitFor } from "../../bench/rig/wait-for.ts";
import { assertGreedy } from "../support/expectations.ts";
import { readTinyGoldens } from "../support/goldens.ts";
import { commandLine, descendants, isAlive } from "../support/process-tree.ts";
import { runCommand } from "../support/run-command.ts";

const ROOT = join(import.meta.dirname, "../..");
const START_DEADLINE_MS = 60_000;

/** `switchyard up` with the tiny model, on the CPU unless the flags say otherwise. */
function launch(flags: readonly string[]) {
  const argv = [
    ["deploy/switchyard.ts", "up", "--model", "test/goldens/qwen2_moe", "--device", "cpu"],
    ["--http-port", "0", "--grpc-port", "0", ...flags],
  ].flat();
  const child = spawn(process.execPath, argv, {
    cwd: ROOT,
    env: childEnvironment({ NODE_TEST_CONTEXT: undefined }),
    stdio: ["ignore", "pipe", "pipe"],
  });
  after(() => child.kill("SIGKILL"));
  const text = { stdout: "", stderr: "" };
  child.stdout.on("data", (data: Buffer) => (text.stdout += data.toString()));
  child.stderr.on("data", (data: Buffer) => (text.stderr += data.toString()));
  const ended: { exit?: { code: number | null; signal: string | null } } = {};
  child.once("exit", (code, signal) => (ended.exit = { code, signal }));
  const whileUp = <T>(what: string, probe: () => T | undefined | Promise<T | undefined>) =>
    waitFor(what, probe, START_DEADLINE_MS).catch((error: unknown) => {
      throw new Error(`${String(error)}\n${text.stderr}`);
    });
  return {
    text,
    /** Processes of the cluster. */
    children: () => descendants(child.pid ?? 0),
    kill: (signal: NodeJS.Signals) => child.kill(signal),
    exit: () => whileUp("the end of the launcher", () => ended.exit),
    whileUp,
  };
}

/** The launcher once the cluster serves. */
async function up(flags: readonly string[]) {
  const launcher = launch(flags);
  const { text, whileUp } = launcher;
  const ready = await whileUp("ready", () => /^ready (\S+)$/m.exec(text.stdout) ?? undefined);
  const url = ready[1];
  return {
    ...launcher,
    url,
    /** Process ids that log lines of this service name, newest last. */
    pids: (service: string): number[] => [
      ...new Set(
        [...text.stderr.matchAll(/"service":"([^"]+)","pid":(\d+)/g)]
          .filter((match) => match[1] === service)
          .map((match) => Number(match[2])),
      ),
    ],
    redisPort: Number(/redis:\/\/127\.0\.0\.1:(\d+)/.exec(text.stdout)?.[1] ?? 0),
    /** Greedy tokens after a prompt of token ids. */
    async complete(): Promise<unknown> {
      const response = await fetch(`${url}/v1/completions`, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify({
          model: "qwen2_moe",
          prompt: [1, 2, 3, 4, 5],
          max_tokens: 4,
          temperature: 0,
          ignore_eos: true,
          return_token_ids: true,
        }),
        signal: AbortSignal.timeout(30_000),
      });
      const body = (await response.json()) as { choices?: { token_ids?: unknown }[] };
      assert.equal(response.status, 200, JSON.stringify(body));
      return body.choices?.[0]?.token_ids;
    },
  };
}

function isOpen(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(port, "127.0.0.1", () => {
      socket.destroy();
      resolve(true);
    });
    socket.once("error", () => resolve(false));
  });
}

test("up serves with two shards and Redis, restarts a lost shard, and stops all at SIGTERM with exit code 0", async () => {
  const exact = "--device webgpu --weights f32 --wire f32".split(" ");
  const cluster = await up(["--shards", "2", ...exact]);
  const [, golden] = await readTinyGoldens();
  await assertGreedy(cluster.url, golden);
  assert.ok(await isOpen(cluster.redisPort));
  const commands = await Promise.all((await cluster.children()).map(commandLine));
  const numOf = (pattern: RegExp) => commands.filter((line) => pattern.test(line)).length;
  assert.equal(numOf(/expert-service\/main\.ts/), 2);
  assert.equal(numOf(/router-service\/main\.ts/), 1);
  assert.equal(numOf(/^redis-server/), 1);
  const redisUrl = /--redis-url (\S+)/.exec(cluster.text.stdout)?.[1] ?? "";
  await waitFor("the request in switchyard stats", async () => {
    const stats = await runCommand("deploy/switchyard.ts", ["stats", "--redis-url", redisUrl]);
    return stats.code === 0 && stats.stdout.includes("default");
  });

  const [lost] = cluster.pids("shard 1");
  process.kill(lost, "SIGKILL");
  await cluster.whileUp("a new shard 1", () => cluster.pids("shard 1").length > 1 || undefined);
  await cluster.whileUp("health", async () => {
    const response = await fetch(`${cluster.url}/health`);
    await response.body?.cancel();
    return response.ok || undefined;
  });
  await assertGreedy(cluster.url, golden);

  const children = await cluster.children();
  const services = ["router", "shard 0", "shard 1"].flatMap((name) => cluster.pids(name).slice(-1));
  assert.ok(new Set(services).isSubsetOf(new Set(children)), cluster.text.stderr);
  cluster.kill("SIGTERM");
  assert.deepEqual(await cluster.exit(), { code: 0, signal: null }, cluster.text.stderr);
  assert.deepEqual(services.filter(isAlive), []);
  await waitFor("the end of all children", () => !children.some(isAlive));
  assert.ok(!(await isOpen(cluster.redisPort)));
});

test("when the launcher is killed outright its children end", async () => {
  const cluster = await up(["--shards", "1"]);
  const pids = ["router", "shard 0"].flatMap((name) => cluster.pids(name));
  assert.equal(pids.length, 2);
  cluster.kill("SIGKILL");
  await waitFor("the children's end", () => !pids.some(isAlive));
  await waitFor("Redis' end", async () => !(await isOpen(cluster.redisPort)));
});

test("without shards one router process holds all; when it dies, up ends with its exit code", async () => {
  const cluster = await up(["--shards", "0", "--redis-url", "redis://127.0.0.1:1"]);
  assert.equal(cluster.pids("shard 0").length, 0);
  const tokens = await cluster.complete();
  assert.ok(Array.isArray(tokens) && tokens.length === 4);
  process.kill(cluster.pids("router")[0], "SIGKILL");
  assert.deepEqual(await cluster.exit(), { code: 137, signal: null });
});

test("a cluster that can not start names the part that failed, and ends with 1", () => {
  const result = spawnSync(
    process.execPath,
    ["deploy/switchyard.ts", "up", "--model", "/nowhere", "--shards", "1", "--http-port", "0"],
    {
      cwd: ROOT,
      encoding: "utf8",
      timeout: START_DEADLINE_MS,
      // Neither is there a redis-server, which it does not fail for.
      env: childEnvironment({ NODE_TEST_CONTEXT: undefined, PATH: "/nowhere" }),
    },
  );
  assert.equal(result.status, 1, result.stderr);
  assert.match(result.stderr, /\/nowhere/);
  assert.match(result.stderr, /redis-server is not installed/);
  assert.match(
    result.stderr,
    /shard 0 ended before it was ready, exit code 1: can not start: \/nowhere\/config.json: no such file/,
  );
  assert.doesNotMatch(result.stdout, /ready/);
});

test("a signal while it starts stops what has started, with exit code 0", async () => {
  const launcher = launch(["--shards", "1"]);
  const [, pid] = await launcher.whileUp(
    "the shard",
    () => /"service":"shard 0","pid":(\d+)/.exec(launcher.text.stderr) ?? undefined,
  );
  launcher.kill("SIGINT");
  assert.deepEqual(await launcher.exit(), { code: 0, signal: null }, launcher.text.stderr);
  await waitFor("the shard's end", () => !isAlive(Number(pid)));
  assert.doesNotMatch(launcher.text.stdout, /ready/);
});
