/** A contender in a process of its own: JSON lines, requests on its stdin, answers on its stdout. */

import { spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";

import { exitOf } from "../../deploy/child-service.ts";
import { type Contender, type Generation, PeerUnavailableError } from "./contender.ts";

/**
 * The environment as the user has it: opening a GPU sets what suits this project's kernels on a software driver, which
 * is not to be imposed on a peer.
 */
const OWN_ENVIRONMENT = { ...process.env };

/** First line of a child: it has loaded the model. */
export interface ReadyLine {
  readonly ready: { readonly device: string; readonly details: string };
}

/** A request to a child. */
export interface RequestLine {
  readonly prompts: readonly (readonly number[])[];
  readonly numTokens: number;
  /** Prompts are computed token by token. */
  readonly tokenwise: boolean;
}

/** What a child answers. */
export type AnswerLine = { readonly generation: Generation } | { readonly error: string };

/** How a child is started. */
export interface ChildSpec {
  readonly name: string;
  readonly command: string;
  readonly args: readonly string[];
  /** Beside this process's own. */
  readonly env?: Readonly<Record<string, string>>;
  /** Longest load, and longest answer. */
  readonly timeoutMs: number;
}

/** Lines of stderr that an error message shows. */
const SHOWN_LINES = 12;
/** A child whose stdin has ended may take so long to leave. */
const STOP_MS = 5000;

/** Starts a child and waits until it has loaded. Rejects with PeerUnavailableError and the end of its stderr. */
export async function startChildContender(spec: ChildSpec): Promise<Contender> {
  const child = spawn(spec.command, spec.args, {
    env: { ...OWN_ENVIRONMENT, ...spec.env },
    stdio: ["pipe", "pipe", "pipe"],
  });
  const exited = exitOf(child);
  const stderr: string[] = [];
  const stderrLines = createInterface({ input: child.stderr }).on("line", (line) => {
    stderr.push(line);
    if (stderr.length > SHOWN_LINES) stderr.shift();
  });
  const stderrRead = once(stderrLines, "close");
  child.stdin.on("error", () => {}); // a child that is gone; its exit is what counts
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();

  /** The next line that is one of the protocol's: native code may print others. */
  async function nextLine(): Promise<unknown> {
    for (;;) {
      const { value, done } = await lines.next();
      if (done === true) {
        const [exit] = await Promise.all([exited, stderrRead]);
        const how = exit.signal ?? `exit code ${exit.code}`;
        throw new PeerUnavailableError([`${spec.name} ended: ${how}`, ...stderr].join("\n  "));
      }
      if (value.startsWith("{")) return JSON.parse(value);
    }
  }

  async function inTime<T>(what: string, line: Promise<T>): Promise<T> {
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(() => {
        const seconds = spec.timeoutMs / 1000;
        reject(new PeerUnavailableError(`${spec.name}: no ${what} within ${seconds} s`));
      }, spec.timeoutMs);
    });
    try {
      return await Promise.race([line, late]);
    } finally {
      clearTimeout(timer);
    }
  }

  async function close(): Promise<void> {
    child.stdin.end();
    const late = setTimeout(() => child.kill("SIGKILL"), STOP_MS);
    await exited;
    clearTimeout(late);
  }

  try {
    const { ready } = (await inTime("model", nextLine())) as ReadyLine;
    return {
      ...ready,
      async generate(prompts, numTokens, tokenwise = false) {
        const request: RequestLine = { prompts, numTokens, tokenwise };
        child.stdin.write(`${JSON.stringify(request)}\n`);
        const answer = (await inTime("answer", nextLine())) as AnswerLine;
        if ("error" in answer) throw new Error(`${spec.name}: ${answer.error}`);
        return answer.generation;
      },
      close,
    };
  } catch (error) {
    child.kill("SIGKILL");
    await exited;
    throw error;
  }
}
