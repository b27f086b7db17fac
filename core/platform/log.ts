/** The one door to pino: JSON lines on stderr, or readable lines where stderr is a terminal. */

import { pino, type Logger } from "pino";

/** pino's own logger. */
export type { Logger } from "pino";

/** The part of a logger that most code needs: constant messages, and what varies as facts. */
export interface Log {
  info(facts: object, message: string): void;
  warn(facts: object, message: string): void;
  error(facts: object, message: string): void;
}

/** A log line's fields; others are facts. */
interface LogLine {
  readonly level?: string;
  readonly time?: string;
  readonly service?: string;
  readonly pid?: number;
  readonly msg?: string;
  readonly err?: { readonly stack?: string; readonly message?: string };
}

const COLOURS: Readonly<Record<string, string>> = {
  warn: "\x1b[33m",
  error: "\x1b[31m",
  fatal: "\x1b[31m",
};

/** Makes the logger of a process; messages are constant, facts are fields. `level` is a pino level or "silent". */
export function createLogger(service: string, level: string): Logger {
  const destination = process.stderr.isTTY
    ? { write: (line: string) => void process.stderr.write(`${formatLogLine(line, true)}\n`) }
    : pino.destination({ fd: 2, sync: true });
  return pino(
    {
      level,
      base: { service, pid: process.pid },
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
    },
    destination,
  );
}

/** A JSON log line as a person reads it: time, level, service, message, facts; any other line comes back as it is. */
export function formatLogLine(line: string, colour: boolean): string {
  let parsed: LogLine | undefined;
  try {
    const value: unknown = JSON.parse(line);
    if (typeof value === "object" && value !== null && "msg" in value) parsed = value as LogLine;
  } catch {
    // Not a log line of ours: a library's own print.
  }
  if (parsed === undefined) return line.trimEnd();
  const { level = "info", time = "", service = "", pid: _, msg = "", err, ...facts } = parsed;
  const fields = Object.entries(facts).map(([key, value]) => ` ${key}=${printFact(value)}`);
  const trace = err === undefined ? "" : `\n${err.stack ?? err.message ?? ""}`;
  const paint = colour ? COLOURS[level] : undefined;
  const shownLevel = paint === undefined ? level.padEnd(5) : `${paint}${level.padEnd(5)}\x1b[0m`;
  return `${time.slice(11, 23)} ${shownLevel} ${service.padEnd(8)} ${msg}${fields.join("")}${trace}`;
}

function printFact(value: unknown): string {
  return typeof value === "string" && !/[\s"=]/.test(value) ? value : JSON.stringify(value);
}
