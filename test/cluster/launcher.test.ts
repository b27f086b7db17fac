import assert from "node:assert/strict";
import { spawn, type ChildProcess } from "node:child_process";
import path from "node:path";
import { after, describe, test } from "node:test";

import { childEnvironment } from "../../core/platform/config.ts";
import { continueGreedily } from "../../bench/rig/api.ts";
import { TINY_MODEL } from "../../bench/rig/cluster.ts";
import { readTinyGoldens } from "../support/goldens.ts";
import { commandLine, descendants, isAlive } from "../support/process-tree.ts";
import { runCommand } from "../support/run-command.ts";
import { waitFor } from "../../bench/rig/wait-for.ts";

const ROOT = path.join(import.meta.dirname, "../..");
const [, golden] = await readTinyGoldens();

/** A launched cluster and what it printed. */
interface Launched {
  readonly child: ChildProcess;
  readonly url: string;
  readonly stdout: string;
  readonly children: readonly number[];
}

describe("switchyard up", () => {
  const started: ChildProcess[] = [];
  after(() => {
    for (const child of started) child.kill("SIGKILL");
  });

  async function launch(): Promise<Launched> {
    const flags = "--http-port 0 --grpc-port 0 --device webgpu --weights f32 --wire f32";
    const argv = ["deploy/switchyard.ts", "up", "--model", TINY_MODEL, ...flags.split(" ")];
    const env = childEnvironment({ NODE_TEST_CONTEXT: undefined, npm_lifecycle_event: undefined });
    const child = spawn(process.execPath, argv, { cwd: ROOT, env });
    started.push(child);
    let stdout = "";
    let stderr = "";
    child.stdout.on("data", (bytes: Buffer) => (stdout += bytes.toString()));
    child.stderr.on("data", (bytes: Buffer) => (stderr += bytes.toString()));
    const url = await waitFor(
      "the ready line",
      () => {
        if (child.exitCode !== null) throw new Error(`ended with ${child.exitCode}\n${stderr}`);
        return /ready (http:\S+)\n[^]*\n$/.exec(stdout)?.[1];
      },
      60_000,
    ).catch((error: unknown) => {
      throw new Error(`${String(error)}\n${stdout}\n${stderr}`);
    });
    return { child, url, stdout, children: await descendants(child.pid ?? 0) };
  }

  async function assertAllGone(children: readonly number[]): Promise<void> {
    await waitFor(
      "all children to end",
      async () => {
        const alive = await Promise.all(children.map(isAlive));
        return alive.every((one) => !one);
      },
      15_000,
    ).catch(async (error: unknown) => {
      const left = await Promise.all(children.map(commandLine));
      throw new Error(`${String(error)}: ${left.filter(Boolean).join("\n")}`);
    });
  }

  test("starts router, shards and Redis, says where, and stops all of them at SIGTERM with exit code 0", async () => {
    const { child, url, stdout, children } = await launch();
    const commands = await Promise.all(children.map(commandLine));
    assert.equal(commands.filter((line) => line.includes("expert-service/main.ts")).length, 2);
    assert.equal(commands.filter((line) => line.includes("router-service/main.ts")).length, 1);
    assert.equal(commands.filter((line) => line.startsWith("redis-server")).length, 1);
    const { ids } = await continueGreedily(url, golden.prompt, 24);
    assert.deepEqual(ids, golden.greedy);

    const redisUrl = /--redis-url (\S+)/.exec(stdout)?.[1] ?? "";
    await waitFor("the request in switchyard stats", async () => {
      const stats = await runCommand("deploy/switchyard.ts", ["stats", "--redis-url", redisUrl]);
      return stats.code === 0 && stats.stdout.includes("default");
    });

    const exited = new Promise((resolve) => {
      child.once("exit", (code, signal) => resolve({ code, signal }));
    });
    child.kill("SIGTERM");
    assert.deepEqual(await exited, { code: 0, signal: null });
    await assertAllGone(children);
  });
});
