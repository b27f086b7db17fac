/** Configuration of a process: flags over SWITCHYARD_* variables over defaults, from one zod schema. Alone reads and sets process.env. */

import { homedir } from "node:os";
import { join } from "node:path";

import { z } from "zod";

import { describeFlags, flagName, flagText, nearest, type FlagDescription } from "./flags.ts";

/** What a command line and an environment come to. */
export type ParsedConfig<T> =
  | { readonly kind: "config"; readonly config: T }
  | { readonly kind: "help" }
  /** One line per problem: name, value and expectation. */
  | { readonly kind: "invalid"; readonly problems: readonly string[] };

/** A value as it was given, and under which name. */
interface Given {
  readonly name: string;
  readonly text: string;
}

/** Parses `argv` (without node and script) and `env` against an object schema; pure, the result is frozen. */
export function parseConfig<S extends z.ZodObject>(
  schema: S,
  argv: readonly string[],
  env: Readonly<Record<string, string | undefined>>,
): ParsedConfig<Readonly<z.output<S>>> {
  const flags = describeFlags(schema);
  const { given, problems, help } = readFlags(flags, argv);
  if (help) return { kind: "help" };

  const input: Record<string, unknown> = {};
  for (const flag of flags) {
    const text = env[flag.env];
    if (!given.has(flag.key) && text !== undefined) given.set(flag.key, { name: flag.env, text });
    const value = given.get(flag.key)?.text;
    // An empty value counts as not set, so that a flag can take back what the environment says.
    if (value !== undefined && value !== "") input[flag.key] = interpret(flag, value);
  }

  const result = schema.safeParse(input);
  if (!result.success) {
    const seen = new Set<string>();
    for (const issue of result.error.issues) {
      const flag = flags.find((one) => one.key === issue.path[0]);
      const problem =
        flag === undefined ? issue.message : describeProblem(flag, given.get(flag.key));
      if (!seen.has(problem)) problems.push(problem);
      seen.add(problem);
    }
  }
  if (problems.length > 0 || !result.success) return { kind: "invalid", problems };
  for (const value of Object.values(result.data)) Object.freeze(value);
  return { kind: "config", config: Object.freeze(result.data) };
}

/** Reads this process's flags and environment; prints help or every problem and exits where there is no config. */
export function loadConfig<S extends z.ZodObject>(
  schema: S,
  about: { readonly command: string; readonly summary: string; readonly notes?: string },
  argv: readonly string[] = process.argv.slice(2),
): Readonly<z.output<S>> {
  const parsed = parseConfig(schema, argv, process.env);
  switch (parsed.kind) {
    case "config":
      return parsed.config;
    case "help":
      process.stdout.write(helpText(schema, about));
      process.exit(0);
    case "invalid":
      process.stderr.write(
        `${about.command}: ${parsed.problems.length === 1 ? "a problem" : `${parsed.problems.length} problems`} with the configuration\n${parsed.problems.map((line) => `  ${line}\n`).join("")}See ${about.command} --help.\n`,
      );
      process.exit(2);
  }
}

/** The arguments and variables that give another process these values; secrets go by variable, so that `ps` does not show them. */
export function toArguments<S extends z.ZodObject>(
  schema: S,
  config: Readonly<z.input<S>>,
): { readonly argv: readonly string[]; readonly env: Readonly<Record<string, string>> } {
  const argv: string[] = [];
  const env: Record<string, string> = {};
  const values = new Map<string, unknown>(Object.entries(config));
  for (const flag of describeFlags(schema)) {
    const value = values.get(flag.key);
    if (value === undefined) continue;
    const text = flagText(value);
    if (flag.secret) env[flag.env] = text;
    else argv.push(`${flag.flag}=${text}`);
  }
  return { argv, env };
}

/** This process's environment with changes; for a child process. */
export function childEnvironment(
  changes: Readonly<Record<string, string | undefined>> = {},
): NodeJS.ProcessEnv {
  return { ...process.env, ...changes };
}

/** A variable that is not ours (OTEL_*, npm_*); undefined where it is empty or not set. */
export function foreignEnvironment(name: string): string | undefined {
  const value = process.env[name];
  return value === "" ? undefined : value;
}

/** Sets a variable that libraries of this process read, unless it is set to something. */
export function defaultForeignEnvironment(name: string, value: string): void {
  if (foreignEnvironment(name) === undefined) process.env[name] = value;
}

/** Where this user's programs keep what can be made again: XDG_CACHE_HOME or ~/.cache, ours within it. */
export function cacheDirectory(): string {
  const base = process.env["XDG_CACHE_HOME"];
  return join(base === undefined || base === "" ? join(homedir(), ".cache") : base, "switchyard");
}

/** Text of `--help`, from the schema. */
export function helpText(
  schema: z.ZodObject,
  about: { readonly command: string; readonly summary: string; readonly notes?: string },
): string {
  const rows = describeFlags(schema).map((flag) => ({
    left: `  ${flag.flag}${flag.type === "boolean" ? "" : ` ${flag.placeholder}`}`,
    right: `${flag.description}${flag.defaultText === undefined ? "" : ` (default ${flag.defaultText})`}`,
  }));
  rows.push({ left: "  --help", right: "This text" });
  const width = Math.max(...rows.map((row) => row.left.length)) + 2;
  const lines = rows.map((row) => row.left.padEnd(width) + row.right);
  const notes = about.notes === undefined ? "" : `\n${about.notes}\n`;
  return (
    `${about.summary}\n\nUsage: ${about.command} [flags]\n\n${lines.join("\n")}\n\n` +
    `Every flag can be set by the environment: --http-port is SWITCHYARD_HTTP_PORT. A flag wins.\n${notes}`
  );
}

function readFlags(
  flags: readonly FlagDescription[],
  argv: readonly string[],
): { given: Map<string, Given>; problems: string[]; help: boolean } {
  const given = new Map<string, Given>();
  const problems: string[] = [];
  const positional = flags.find((one) => one.positional);
  /** Of a flag that stands twice the last one counts; what may stand without its flag stands once. */
  const give = (flag: FlagDescription, name: string, text: string) => {
    const known = flag.positional ? given.get(flag.key) : undefined;
    if (known === undefined || (known.name === name && name === flag.flag)) {
      given.set(flag.key, { name, text });
    } else {
      const [is, was] = [text, known.text].map((one) => JSON.stringify(one));
      problems.push(`${name} is ${is}, and ${known.name} is ${was} already`);
    }
  };
  for (let index = 0; index < argv.length; index++) {
    const argument = argv[index];
    if (argument === "--help" || argument === "-h") return { given, problems, help: true };
    if (!argument.startsWith("--")) {
      if (positional !== undefined) give(positional, positional.placeholder, argument);
      else problems.push(`"${argument}": unexpected argument, flags begin with --`);
      continue;
    }
    const equals = argument.indexOf("=");
    const name = equals < 0 ? argument : argument.slice(0, equals);
    const flag = flags.find((one) => one.flag === name);
    const negated = flags.find(
      (one) => one.type === "boolean" && `--no-${one.flag.slice(2)}` === name,
    );
    const next = argv[index + 1];
    if (negated !== undefined && equals < 0) {
      given.set(negated.key, { name, text: "false" });
    } else if (flag === undefined) {
      const close = nearest(
        name,
        flags.map((one) => one.flag),
      );
      problems.push(`${name}: unknown flag${close === undefined ? "" : `, ${close} exists`}`);
      const isSwitch = flags.some((one) => one.flag === close && one.type === "boolean");
      // Its value, if it has one, is not a problem of its own.
      if (equals < 0 && !isSwitch && next !== undefined && !next.startsWith("-")) index++;
    } else if (equals >= 0) {
      give(flag, name, argument.slice(equals + 1));
    } else if (flag.type === "boolean") {
      given.set(flag.key, { name, text: "true" });
    } else if (next === undefined || next.startsWith("--")) {
      problems.push(`${name}: value is missing, expected ${flag.expectation}`);
      given.set(flag.key, { name, text: "" });
    } else {
      give(flag, name, next);
      index++;
    }
  }
  return { given, problems, help: false };
}

/** The text as the schema's type; text that does not fit stays text, for the schema to refuse. */
function interpret(flag: FlagDescription, text: string): unknown {
  switch (flag.type) {
    case "number":
      return /^[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$/i.test(text) ? Number(text) : text;
    case "boolean":
      return { true: true, "1": true, false: false, "0": false }[text.toLowerCase()] ?? text;
    case "list":
      return text.split(",").flatMap((part) => part.trim() || []);
    case "text":
      return text;
  }
}

function describeProblem(flag: FlagDescription, given: Given | undefined): string {
  if (given === undefined) {
    return `${flagName(flag.key)} (or ${flag.env}) is missing, expected ${flag.expectation}`;
  }
  const value = flag.secret ? "(not shown)" : JSON.stringify(given.text);
  return `${given.name} is ${value}, expected ${flag.expectation}`;
}
