/** A redis-server of the local cluster's own: in memory, on a free port, gone with the launcher. */

import { spawn, spawnSync } from "node:child_process";
import { connect, createServer, type AddressInfo } from "node:net";
import { setTimeout as delay } from "node:timers/promises";

import type { ReadyMessage } from "../core/platform/lifecycle.ts";
import { exitOf, readLines, whenReady, type ChildService } from "./child-service.ts";

/**
 * A shell that runs redis-server and ends it when its own standard input ends, which happens however the launcher
 * goes: redis-server itself outlives a launcher that is killed outright.
 */
const GUARD = `
exec 3<&0
redis-server "$@" </dev/null 3<&- &
server=$!
trap 'kill $server' TERM
(cat <&3; kill $server) >/dev/null 2>&1 </dev/null &
exec 3<&-
wait $server
code=$?
wait $server
exit $code
`;

const CONNECT_MS = 1000;
const RETRY_MS = 20;
const MAX_LAST_WORDS = 20;

/** Whether there is a redis-server to start. */
export function hasRedisServer(): boolean {
  return spawnSync("redis-server", ["--version"], { timeout: 10_000 }).status === 0;
}

/**
 * Starts redis-server on `port` of 127.0.0.1, 0 for a free one; ready when it answers PING.
 * Rejects with its last words where it ends before, or when the signal aborts.
 */
export async function startRedis(port: number, signal: AbortSignal): Promise<ChildService> {
  const chosen = port === 0 ? await freePort() : port;
  const child = spawn(
    "sh",
    [
      ["-c", GUARD, "redis-guard"],
      `--port ${chosen} --bind 127.0.0.1 --appendonly no --loglevel warning --save`.split(" "),
      "",
    ].flat(),
    { stdio: ["pipe", "pipe", "pipe"], detached: true },
  );
  const lastWords: string[] = [];
  readLines(child, (line) => {
    lastWords.push(line);
    if (lastWords.length > MAX_LAST_WORDS) lastWords.shift();
  });
  const exited = exitOf(child);
  const over = new AbortController();
  void exited.then(() => over.abort());
  const ready = answersPing(chosen, AbortSignal.any([signal, over.signal])).then(
    (): ReadyMessage => ({ ready: true, port: chosen }),
  );
  // Where the process ends or the wait is over, that is what is reported.
  ready.catch(() => undefined);
  try {
    return await whenReady("redis-server", child, exited, ready, signal);
  } catch (error) {
    throw new Error([(error as Error).message, ...lastWords].join("\n"), { cause: error });
  }
}

/** Settles when a Redis answers PING on the port. Rejects when the signal aborts. */
export async function answersPing(port: number, signal: AbortSignal): Promise<void> {
  while (!(await ping(port))) await delay(RETRY_MS, undefined, { signal });
}

function ping(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(port, "127.0.0.1");
    const end = (answered: boolean): void => {
      socket.destroy();
      resolve(answered);
    };
    socket.setTimeout(CONNECT_MS, () => end(false));
    socket.once("error", () => end(false));
    socket.once("connect", () => socket.write("PING\r\n"));
    socket.once("data", (data) => end(data.toString().startsWith("+PONG")));
    socket.once("close", () => end(false));
  });
}

/** A port of 127.0.0.1 that was free a moment ago. */
export async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}
