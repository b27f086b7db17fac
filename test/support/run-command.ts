/** Runs a command of the project to its end. */

import { fork } from "node:child_process";
import path from "node:path";

import { childEnvironment } from "../../core/platform/config.ts";

const ROOT = path.join(import.meta.dirname, "../..");

/** What a command wrote and how it ended. */
export interface CommandResult {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs a script of the repository; kills it after `deadlineMs`, which gives code null. */
export function runCommand(
  script: string,
  argv: readonly string[],
  options: {
    readonly env?: Readonly<Record<string, string | undefined>>;
    readonly deadlineMs?: number;
  } = {},
): Promise<CommandResult> {
  const child = fork(path.join(ROOT, script), [...argv], {
    cwd: ROOT,
    env: childEnvironment({ NODE_TEST_CONTEXT: undefined, ...options.env }),
    execArgv: [],
    silent: true,
  });
  let stdout = "";
  let stderr = "";
  child.stdout?.on("data", (bytes: Buffer) => (stdout += bytes.toString()));
  child.stderr?.on("data", (bytes: Buffer) => (stderr += bytes.toString()));
  return new Promise((resolve) => {
    const timer = setTimeout(() => child.kill("SIGKILL"), options.deadlineMs ?? 30_000);
    child.once("close", (code) => {
      clearTimeout(timer);
      resolve({ code, stdout, stderr });
    });
  });
}
