/** A service as a child process: ready when it says so, stopped with a deadline, started again when it dies. */

import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { constants } from "node:os";
import { createInterface } from "node:readline";
import { setTimeout as delay } from "node:timers/promises";

import { childEnvironment } from "../core/platform/config.ts";
import { SERVICE_NODE_FLAGS, type ReadyMessage } from "../core/platform/lifecycle.ts";
import type { Logger } from "../core/platform/log.ts";
import type { ProgressMessage } from "../core/platform/progress.ts";

/** How a process ended: its exit code, 128 + the number of the signal that killed it. */
export interface Exit {
  readonly code: number;
  readonly signal: string | undefined;
}

/** A child that is ready. */
export interface ChildService {
  readonly name: string;
  readonly ready: ReadyMessage;
  readonly exited: Promise<Exit>;
  /** Asks it to stop, kills it when it does not within STOP_MS; settles when it has gone. */
  stop(): Promise<void>;
}

/** What a child is told and where its words go. */
export interface ServiceSpec {
  readonly name: string;
  /** Path of the TypeScript file that it runs. */
  readonly script: string;
  readonly argv: readonly string[];
  readonly env: Readonly<Record<string, string>>;
  readonly onLine: (line: string) => void;
  readonly onProgress: (progress: ProgressMessage["progress"]) => void;
}

/** Longest wait for a child's own orderly end, milliseconds; more than its own deadline. */
const STOP_MS = 12_000;

/** Longest wait for the last lines of a child that has ended, milliseconds. */
const LAST_LINES_MS = 500;

/** A child that lived this long is not failing at start, milliseconds. */
const HEALTHY_MS = 60_000;

/** Milliseconds to wait before the next start, after so many failures in a row. */
export function restartDelayMs(failures: number): number {
  return Math.min(10_000, 250 * 2 ** Math.min(failures, 10));
}

/** Starts a service and waits for its ready message. Rejects where it ends before, with what it said last, or `signal` aborts. */
export async function startService(spec: ServiceSpec, signal: AbortSignal): Promise<ChildService> {
  const child = spawn(process.execPath, [...SERVICE_NODE_FLAGS, spec.script, ...spec.argv], {
    stdio: ["ignore", "pipe", "pipe", "ipc"],
    env: childEnvironment(spec.env),
    // Its own process group: a terminal's Ctrl-C reaches the launcher only, which stops all in order.
    detached: true,
  });
  let lastWords = "";
  readLines(child, (line) => {
    lastWords = fatalWords(line) ?? lastWords;
    spec.onLine(line);
  });
  const closed = new Promise((resolve) => void child.once("close", resolve));
  const exited = exitOf(child);
  const ready = new Promise<ReadyMessage>((resolve) => {
    child.on("message", (message: ReadyMessage | ProgressMessage) => {
      if ("progress" in message) spec.onProgress(message.progress);
      else if ("ready" in message) resolve(message);
    });
  });
  try {
    return await whenReady(spec.name, child, exited, ready, signal);
  } catch (error) {
    // Its last lines may come after its end.
    await Promise.race([closed, delay(LAST_LINES_MS, undefined, { ref: false })]);
    if (lastWords === "") throw error;
    throw new Error(`${(error as Error).message}: ${lastWords}`, { cause: error });
  }
}

/** What a log line says of why its process can not go on; undefined of any other line. */
function fatalWords(line: string): string | undefined {
  if (!line.startsWith('{"level":"fatal"')) return undefined;
  try {
    return (JSON.parse(line) as { msg?: string }).msg;
  } catch {
    // Cut off in the middle.
    return undefined;
  }
}

/** The service once `ready` resolves. Rejects, the child killed, where it ends before or `signal` aborts. */
export async function whenReady(
  name: string,
  child: ChildProcess,
  exited: Promise<Exit>,
  ready: Promise<ReadyMessage>,
  signal: AbortSignal,
): Promise<ChildService> {
  const listening = new AbortController();
  try {
    signal.throwIfAborted();
    const message = await Promise.race([
      ready,
      exited.then((exit) => {
        throw new Error(
          `${name} ended before it was ready, ${exit.signal ?? `exit code ${exit.code}`}`,
        );
      }),
      once(signal, "abort", { signal: listening.signal }).then(() => {
        throw new Error(`${name} is not ready in time: ${String(signal.reason)}`);
      }),
    ]);
    return { name, ready: message, exited, stop: () => stopChild(child, exited) };
  } catch (error) {
    child.kill("SIGKILL");
    throw error;
  } finally {
    listening.abort();
  }
}

/** Passes on what a child prints, line by line. */
export function readLines(child: ChildProcess, onLine: (line: string) => void): void {
  for (const stream of [child.stdout, child.stderr]) {
    if (stream !== null) createInterface({ input: stream }).on("line", onLine);
  }
}

/** How a child ends; a child that can not be started ends with 127. */
export function exitOf(child: ChildProcess): Promise<Exit> {
  return new Promise((resolve) => {
    child.once("error", (error) => resolve({ code: 127, signal: error.message }));
    child.once("exit", (code, signal) =>
      resolve({
        code: code ?? 128 + (signal === null ? 0 : constants.signals[signal]),
        signal: signal ?? undefined,
      }),
    );
  });
}

/** SIGTERM, then SIGKILL after STOP_MS. */
async function stopChild(child: ChildProcess, exited: Promise<Exit>): Promise<void> {
  child.kill("SIGTERM");
  const late = setTimeout(() => child.kill("SIGKILL"), STOP_MS);
  await exited;
  clearTimeout(late);
}

/** Keeps a service running until `stop`: when it dies it is started again, after longer and longer waits. */
export function keepRunning(
  first: ChildService,
  start: (signal: AbortSignal) => Promise<ChildService>,
  logger: Logger,
): { stop(): Promise<void> } {
  const stopping = new AbortController();
  let current: ChildService | undefined = first;

  const watch = async (): Promise<void> => {
    let failures = 0;
    for (;;) {
      if (current !== undefined) {
        const startedAt = performance.now();
        const exit = await current.exited;
        if (stopping.signal.aborted) return;
        logger.error({ name: first.name, ...exit }, "a process ended; it is started again");
        if (performance.now() - startedAt > HEALTHY_MS) failures = 0;
        current = undefined;
      }
      try {
        await delay(restartDelayMs(failures++), undefined, { signal: stopping.signal });
        current = await start(stopping.signal);
        logger.info({ name: first.name }, "the process is ready again");
      } catch (error) {
        if (stopping.signal.aborted) return;
        logger.error({ name: first.name, err: error }, "the process does not start");
      }
    }
  };
  const watched = watch();
  return {
    stop: async () => {
      stopping.abort(new Error("stopping"));
      await current?.stop();
      await watched;
    },
  };
}
