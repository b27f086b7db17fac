import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { connect, createServer, type AddressInfo } from "node:net";
import { join } from "node:path";
import { after, test } from "node:test";

import { createLogger } from "../../core/platform/log.ts";
import {
  keepRunning,
  restartDelayMs,
  startService,
  type ChildService,
} from "../../deploy/child-service.ts";
import { startRedis } from "../../deploy/redis-process.ts";
import { waitFor } from "../../bench/rig/wait-for.ts";

const FIXTURE = join(import.meta.dirname, "../core/platform/fixtures/service.ts");
const LOAD_FIXTURE = join(import.meta.dirname, "../core/platform/fixtures/load.ts");
const logger = createLogger("test", "silent");

function fixture(script: string, argv: string[] = []) {
  const lines: string[] = [];
  const progress: number[] = [];
  const start = (signal: AbortSignal = AbortSignal.timeout(10_000)): Promise<ChildService> =>
    startService(
      {
        name: "fixture",
        script,
        argv,
        env: {},
        onLine: (line) => lines.push(line),
        onProgress: ({ done }) => progress.push(done),
      },
      signal,
    );
  /** Process ids of the fixtures that said that they are ready. */
  after(() => pids().forEach((pid) => kill(pid)));
  const pids = () =>
    lines.flatMap((line) => {
      const pid = /^ready (\d+)/.exec(line)?.[1];
      return pid === undefined ? [] : [Number(pid)];
    });
  return { start, lines, progress, pids };
}

test("a service is ready when it says so, and stops in order", async () => {
  const { start, lines } = fixture(FIXTURE);
  const service = await start();
  assert.equal(service.ready.port, 1234);
  await service.stop();
  assert.deepEqual(await service.exited, { code: 0, signal: undefined });
  await waitFor("its last line", () => lines.includes("closed first"));
});

test("a service that ends before it is ready is an error with its name and exit code", async () => {
  const { start, progress } = fixture(LOAD_FIXTURE);
  await assert.rejects(start(), /fixture ended before it was ready, exit code 0/);
  assert.deepEqual([progress[0], progress.at(-1)], [0, 1000]);
});

test("the wait for a service ends with the signal, and the service with it", async () => {
  const never = fixture(join(import.meta.dirname, "../support/wait-for.ts"));
  await assert.rejects(never.start(AbortSignal.abort(new Error("too late"))), /too late/);
  const { start, pids } = fixture(FIXTURE);
  const abort = new AbortController();
  const service = await start(abort.signal);
  // Once it is ready the signal is no longer its business.
  abort.abort();
  await waitFor("its line", () => pids().length === 1);
  await service.stop();
  assert.deepEqual(await service.exited, { code: 0, signal: undefined });
});

test("a killed service is started again until it is stopped", async () => {
  const { start, pids } = fixture(FIXTURE);
  const first = await start();
  const kept = keepRunning(first, start, logger);
  await waitFor("the first one's line", () => pids().length === 1);
  process.kill(pids()[0], "SIGKILL");
  assert.deepEqual(await first.exited, { code: 137, signal: "SIGKILL" });
  await waitFor("the second one's line", () => pids().length === 2);
  await kept.stop();
  assert.ok(!kill(pids()[1]));
});

test("the waits between starts grow to a bound", () => {
  const delays = Array.from({ length: 40 }, (_, failures) => restartDelayMs(failures));
  assert.deepEqual(delays.slice(0, 4), [250, 500, 1000, 2000]);
  assert.equal(Math.max(...delays), 10_000);
  assert.deepEqual(
    delays,
    delays.toSorted((a, b) => a - b),
  );
});

test("redis-server answers on a free port and is gone after stop", async () => {
  const redis = await startRedis(0, AbortSignal.timeout(10_000));
  const { port = 0 } = redis.ready;
  assert.match(await ask(port), /\+PONG/);
  await redis.stop();
  await waitFor("a closed port", async () => (await ask(port)) === "");
});

test("a redis-server that can not start says why", async () => {
  const taken = createServer().listen(0, "127.0.0.1");
  await once(taken, "listening");
  const { port: takenPort } = taken.address() as AddressInfo;
  await assert.rejects(
    startRedis(takenPort, AbortSignal.timeout(10_000)),
    /redis-server ended before it was ready, exit code 1\n(.*\n)*.*Address already in use/,
  );
  taken.close();
});

test("redis-server ends when its launcher is killed outright", async () => {
  const script =
    'import { startRedis } from "./deploy/redis-process.ts";' +
    "const redis = await startRedis(0, AbortSignal.timeout(10_000));" +
    "console.log(redis.ready.port); setInterval(() => undefined, 1000);";
  const launcher = spawn(process.execPath, ["--input-type=module", "--eval", script], {
    cwd: join(import.meta.dirname, "../.."),
    stdio: ["ignore", "pipe", "inherit"],
  });
  after(() => launcher.kill("SIGKILL"));
  const [line] = (await once(launcher.stdout, "data", {
    signal: AbortSignal.timeout(10_000),
  })) as [Buffer];
  const port = Number(line.toString());
  assert.match(await ask(port), /\+PONG/);
  launcher.kill("SIGKILL");
  await waitFor("a closed port", async () => (await ask(port)) === "");
});

/** Kills a process; false where it has gone. */
function kill(pid: number): boolean {
  try {
    return process.kill(pid, "SIGKILL");
  } catch {
    return false;
  }
}

/** The answer to PING on a port; empty where nobody listens. */
async function ask(port: number): Promise<string> {
  return new Promise((resolve) => {
    const socket = connect(port, "127.0.0.1", () => socket.write("PING\r\n"));
    socket.once("data", (data) => {
      socket.destroy();
      resolve(data.toString());
    });
    socket.once("error", () => resolve(""));
  });
}
