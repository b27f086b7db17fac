/** Real processes of the project: spawned with an IPC channel, ready when they say so, stopped by who started them. */

import { fork, type ChildProcess } from "node:child_process";
import path from "node:path";

import { childEnvironment } from "../../core/platform/config.ts";
import { SERVICE_NODE_FLAGS, type ReadyMessage } from "../../core/platform/lifecycle.ts";
import { keepOutput } from "./process-output.ts";

const ROOT = path.join(import.meta.dirname, "../..");

/** How long a process may take until it serves: a software GPU compiles its kernels for seconds. */
const START_DEADLINE_MS = 60_000;

/** How a process ended. */
export interface Exit {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
}

/** A running process. */
export interface ServiceProcess {
  readonly name: string;
  readonly pid: number;
  /** Ports that it announced. */
  readonly ready: ReadyMessage;
  /** What it wrote to stdout and stderr, the end of it. */
  output(): string;
  /** Settles when it is gone. */
  readonly exited: Promise<Exit>;
  kill(signal: NodeJS.Signals): void;
  /** SIGTERM, then SIGKILL where it is still there after `graceMs`. */
  stop(graceMs?: number): Promise<Exit>;
}

/** What is started. */
export interface ServiceCommand {
  readonly name: string;
  /** Script, from the root of the repository. */
  readonly script: string;
  readonly argv: readonly string[];
  readonly env?: Readonly<Record<string, string | undefined>>;
  /** Hears each line that it writes, as it comes. */
  readonly onLine?: (line: string) => void;
}

/** Starts a process and waits until it announces that it serves. Rejects with its output where it ends or hangs first. */
export async function startService(command: ServiceCommand): Promise<ServiceProcess> {
  const child = fork(path.join(ROOT, command.script), [...command.argv], {
    cwd: ROOT,
    env: childEnvironment({ NODE_TEST_CONTEXT: undefined, ...command.env }),
    execArgv: [...SERVICE_NODE_FLAGS],
    silent: true,
  });
  const streams = [child.stdout, child.stderr].filter((stream) => stream !== null);
  const output = keepOutput(streams, command.onLine);
  const exited = new Promise<Exit>((resolve) => {
    child.once("exit", (code, signal) => resolve({ code, signal }));
  });
  const ready = await readyMessage(child, exited).catch((error: unknown) => {
    child.kill("SIGKILL");
    throw new Error(`${command.name} ${command.argv.join(" ")}: ${String(error)}\n${output()}`);
  });
  return {
    name: command.name,
    pid: child.pid ?? 0,
    ready,
    output,
    exited,
    kill: (signal) => void child.kill(signal),
    async stop(graceMs = 15_000) {
      child.kill("SIGTERM");
      const timer = setTimeout(() => child.kill("SIGKILL"), graceMs);
      const exit = await exited;
      clearTimeout(timer);
      return exit;
    },
  };
}

async function readyMessage(child: ChildProcess, exited: Promise<Exit>): Promise<ReadyMessage> {
  const { promise, resolve, reject } = Promise.withResolvers<ReadyMessage>();
  child.on("message", (message) => {
    if (typeof message === "object" && "ready" in message) resolve(message as ReadyMessage);
  });
  child.once("error", reject);
  void exited.then((exit) =>
    reject(new Error(`ended before it was ready: ${JSON.stringify(exit)}`)),
  );
  const timer = setTimeout(
    () => reject(new Error(`not ready within ${START_DEADLINE_MS} ms`)),
    START_DEADLINE_MS,
  );
  try {
    return await promise;
  } finally {
    clearTimeout(timer);
  }
}
