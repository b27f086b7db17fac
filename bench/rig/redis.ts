/** A real redis-server on a free port, with nothing left behind. */

import { spawn, type ChildProcess } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { answersPing, freePort } from "../../deploy/redis-process.ts";

/** Longest wait for a server's first answer, milliseconds. */
const START_DEADLINE_MS = 10_000;

/** A running server. */
export interface TestRedis {
  readonly url: string;
  readonly port: number;
  /** Kills it as kill -9 does. */
  kill(): Promise<void>;
  /** Starts it again on its port, with what it had on disk. */
  restart(): Promise<void>;
  /** Stops it from answering; its port stays open. */
  freeze(): void;
  thaw(): void;
  /** Ends it and removes its files. */
  close(): Promise<void>;
}

/** Starts redis-server and waits until it answers; every write is on disk before it is answered where `durable`. */
export async function startRedis(options: { readonly durable?: boolean } = {}): Promise<TestRedis> {
  const dir = mkdtempSync(join(tmpdir(), "switchyard-redis-"));
  const port = await freePort();
  const removeFiles = () => rmSync(dir, { recursive: true, force: true });
  let child = await launch(dir, port, options.durable ?? false).catch((error: unknown) => {
    removeFiles();
    throw error;
  });
  const kill = async () => {
    if (child.exitCode !== null || child.signalCode !== null) return;
    const exited = new Promise((resolve) => child.once("exit", resolve));
    child.kill("SIGKILL");
    await exited;
  };
  return {
    url: `redis://127.0.0.1:${port}`,
    port,
    kill,
    restart: async () => {
      await kill();
      child = await launch(dir, port, options.durable ?? false);
    },
    freeze: () => void child.kill("SIGSTOP"),
    thaw: () => void child.kill("SIGCONT"),
    close: async () => {
      await kill();
      removeFiles();
    },
  };
}

async function launch(dir: string, port: number, durable: boolean): Promise<ChildProcess> {
  const child = spawn(
    "redis-server",
    [
      ["--port", String(port), "--bind", "127.0.0.1", "--dir", dir, "--save", ""],
      ["--appendonly", durable ? "yes" : "no", "--appendfsync", "always", "--loglevel", "warning"],
    ].flat(),
    { stdio: "ignore" },
  );
  const over = new AbortController();
  child.once("error", (error) => over.abort(error));
  child.once("exit", (code) => over.abort(new Error(`redis-server ended with ${code}`)));
  try {
    await answersPing(port, AbortSignal.any([over.signal, AbortSignal.timeout(START_DEADLINE_MS)]));
  } catch (error) {
    child.kill("SIGKILL");
    throw error;
  }
  return child;
}
