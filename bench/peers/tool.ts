/** Other people's programs that a peer needs to be installed. */

import { spawn } from "node:child_process";

import { exitOf } from "../../deploy/child-service.ts";
import { PeerUnavailableError } from "./contender.ts";

/** Longest run of a tool, milliseconds: downloads may be large. */
const TIMEOUT_MS = 60 * 60_000;
/** Characters of its output that an error message shows. */
const SHOWN = 2000;

/** Runs a tool to its end. Rejects with PeerUnavailableError and the end of what it printed. */
export async function runTool(command: string, args: readonly string[]): Promise<string> {
  const child = spawn(command, args, {
    stdio: ["ignore", "pipe", "pipe"],
    timeout: TIMEOUT_MS,
  });
  let output = "";
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding("utf8").on("data", (text: string) => (output += text));
  }
  const { code, signal } = await exitOf(child);
  if (code !== 0) {
    const how = signal ?? `exit code ${code}`;
    throw new PeerUnavailableError(
      `${command} ${args.join(" ")}: ${how}\n${output.slice(-SHOWN).trim()}`,
    );
  }
  return output;
}
