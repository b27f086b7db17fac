/** A real redis-server for tests, on a free port, with nothing left behind. */

import { spawn, type ChildProcess } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";

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
  let child = await launch(dir, port, options.durable ?? false);
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
      rmSync(dir, { recursive: true, force: true });
    },
  };
}

/** A TCP port of 127.0.0.1 that nobody listens on at this moment. */
export function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once("error", reject);
    server.listen(0, "127.0.0.1", () => {
      const address = server.address();
      server.close(() => {
        if (address === null || typeof address === "string") reject(new Error("no port"));
        else resolve(address.port);
      });
    });
  });
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
  child.once("error", () => undefined);
  const deadline = Date.now() + 10_000;
  while (!(await answersPing(port))) {
    if (child.exitCode !== null) throw new Error(`redis-server ended with ${child.exitCode}`);
    if (Date.now() > deadline) throw new Error(`redis-server on port ${port}: no answer in 10 s`);
    await delay(10);
  }
  return child;
}

function answersPing(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect({ port, host: "127.0.0.1" }, () => socket.write("PING\r\n"));
    socket.setTimeout(1_000, () => socket.destroy());
    socket.once("data", (data) => {
      resolve(data.toString().startsWith("+PONG"));
      socket.destroy();
    });
    socket.once("error", () => resolve(false));
    socket.once("close", () => resolve(false));
  });
}
