/** A process's life: ready, stopped by a signal or an error, ended with its parent. */

import { readFileSync } from "node:fs";
import { constants } from "node:os";

import { foreignEnvironment } from "./config.ts";
import type { Logger } from "./log.ts";

/** Stops a process in order. */
export interface Lifecycle {
  /** Aborts when the stop begins. */
  readonly signal: AbortSignal;
  /** Registers what to close at the stop; last registered, first closed. */
  onStop(name: string, close: () => void | Promise<void>): void;
  /** Registers what the first signal waits for before the stop begins; a second signal does not. At most one; it never rejects. */
  beforeStop(prepare: () => Promise<void>): void;
  /** Closes everything, then exits with the code; only the first call counts. */
  stop(reason: string, exitCode: number): void;
}

/** What a service process tells the process that spawned it, over the IPC channel. */
export interface ReadyMessage {
  readonly ready: true;
  readonly httpPort?: number;
  readonly grpcPort?: number;
  readonly port?: number;
}

/**
 * Flags of Node that a service process is started with. Waiting for a GPU makes short-lived garbage all the time; by
 * default V8 lets it fill some 100 MB before it looks, so that a process seems to grow for a thousand requests.
 */
export const SERVICE_NODE_FLAGS: readonly string[] = ["--max-semi-space-size=2"];

/** How long closing may take, milliseconds. */
const STOP_DEADLINE_MS = 10_000;

/** A terminal's Ctrl-C reaches us twice under npm, which passes it on: within this time it is one wish. */
const SAME_WISH_MS = 500;

const STOP_SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP"] as const;

/**
 * Takes over signals and uncaught errors of this process.
 * SIGINT, SIGTERM, SIGHUP: wait for what `beforeStop` says, close in reverse order, exit 0; a second one exits at once with 128 + its number.
 * An uncaught error is logged, then the same with exit 1: one that tells what is wrong with the settings, the model or
 * the machine by its message alone. What the stop itself makes fail is neither. What is not closed by the deadline is named, exit 1.
 */
export function startLifecycle(logger: Logger, deadlineMs = STOP_DEADLINE_MS): Lifecycle {
  const closers: { readonly name: string; readonly close: () => void | Promise<void> }[] = [];
  const controller = new AbortController();
  let signalledAt: number | undefined;
  let prepare: (() => Promise<void>) | undefined;

  const stop = (reason: string, exitCode: number): void => {
    if (controller.signal.aborted) return;
    logger[exitCode === 0 ? "info" : "error"]({ reason }, "stopping");
    end(reason, exitCode);
  };
  /** Stops for what has been logged. */
  const end = (reason: string, exitCode: number): void => {
    controller.abort(new Error(`the process is stopping: ${reason}`));
    void closeAll(closers, logger, deadlineMs).then((closed) =>
      process.exit(closed ? exitCode : exitCode || 1),
    );
  };

  for (const signal of STOP_SIGNALS) {
    process.on(signal, () => {
      const now = performance.now();
      if (signalledAt !== undefined && now - signalledAt > SAME_WISH_MS) {
        process.exit(128 + constants.signals[signal]);
      }
      if (signalledAt !== undefined) return;
      signalledAt = now;
      if (prepare === undefined) stop(signal, 0);
      else void prepare().finally(() => stop(signal, 0));
    });
  }
  const fail = (error: unknown): void => {
    if (isCausedByStop(error, controller.signal)) {
      logger.debug({ err: error }, "ended by the stop");
      return;
    }
    const known = error instanceof Error && isStartError(error);
    if (known) logger.fatal({ error: error.name }, `can not start: ${error.message}`);
    else logger.fatal({ err: error }, "uncaught error");
    if (controller.signal.aborted) process.exit(1);
    end(known ? error.message : "uncaught error", 1);
  };
  process.on("uncaughtException", fail);
  process.on("unhandledRejection", fail);

  return {
    signal: controller.signal,
    beforeStop: (wait) => {
      prepare = wait;
    },
    onStop: (name, close) => void closers.push({ name, close }),
    stop,
  };
}

/** Errors that name what is wrong with the settings, the model or the machine: their stack says nothing more. */
const START_ERRORS: ReadonlySet<string> = new Set([
  "CheckpointError",
  "HandshakeError",
  "JsonFileError",
  "KernelError",
  "LimitError",
  "ListenError",
  "ModelConfigError",
  "NoAdapterError",
  "OutOfDeviceMemoryError",
  "PlacementError",
  "SafetensorsError",
  "SlotLimitError",
  "TokenizerError",
  "WeightOverflowError",
]);

/** Errors by which a closed part tells those that wait for it that it is gone. */
const STOP_ERRORS: ReadonlySet<string> = new Set(["AbortError", "UnavailableError"]);

function isStartError(error: NodeJS.ErrnoException): boolean {
  return START_ERRORS.has(error.name) || (error.syscall === "listen" && error.code !== undefined);
}

function isCausedByStop(error: unknown, { aborted, reason }: AbortSignal): boolean {
  if (!aborted || !(error instanceof Error)) return false;
  return error === reason || STOP_ERRORS.has(error.name);
}

/** Calls them in reverse order, each after the one before; false where one failed or the deadline passed. */
async function closeAll(
  closers: readonly { readonly name: string; readonly close: () => void | Promise<void> }[],
  logger: Logger,
  deadlineMs: number,
): Promise<boolean> {
  let current = "";
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<false>((resolve) => {
    timer = setTimeout(() => {
      logger.error({ name: current, deadlineMs }, "not closed within the deadline");
      resolve(false);
    }, deadlineMs);
  });
  const close = async (): Promise<boolean> => {
    let good = true;
    for (const closer of closers.toReversed()) {
      current = closer.name;
      try {
        await closer.close();
      } catch (error) {
        logger.error({ name: closer.name, err: error }, "closing failed");
        good = false;
      }
    }
    return good;
  };
  const closed = await Promise.race([close(), late]);
  clearTimeout(timer);
  return closed;
}

/**
 * Stops this process when the one that started it is gone, even killed outright: seen by the end of the IPC channel,
 * or, under npm, by a change of the processes above.
 */
export function exitWithParent(lifecycle: Lifecycle): void {
  const gone = (): void => lifecycle.stop("the parent process is gone", 0);
  if (process.connected) {
    process.once("disconnect", gone);
  } else if (process.channel === null) {
    // It had a channel and lost it before this call.
    gone();
  } else if (foreignEnvironment("npm_lifecycle_event") !== undefined) {
    const before = npmAncestry();
    const timer = setInterval(() => {
      if (npmAncestry() !== before) gone();
    }, 500);
    timer.unref();
  }
}

/**
 * The processes up to npm, as text that changes when one of them goes: npm is the parent, or the parent's parent where
 * the shell that it starts stays in between.
 */
function npmAncestry(): string {
  const parent = process.ppid;
  try {
    // "pid (command) state ppid …"
    const [, command, grandparent] =
      /^\d+ \((.*)\) \S (\d+)/.exec(readFileSync(`/proc/${parent}/stat`, "utf8")) ?? [];
    return /^(sh|dash|bash|ash|zsh|busybox)$/.test(command)
      ? `${parent} ${grandparent}`
      : `${parent}`;
  } catch {
    // No /proc: not Linux.
    return `${parent}`;
  }
}

/** Tells the spawning process, if it listens, that this one serves. */
export function announceReady(addresses: Omit<ReadyMessage, "ready">): void {
  tellParent({ ready: true, ...addresses } satisfies ReadyMessage);
}

/** Sends a message over the IPC channel; false where there is none. */
export function tellParent(message: object): boolean {
  if (!process.connected || process.send === undefined) return false;
  // The parent may go at any moment; that is exitWithParent's business.
  process.send(message, undefined, undefined, () => undefined);
  return true;
}
