/** The JSON files of a model directory. */

import { readFile, stat } from "node:fs/promises";

import { errorMessage } from "../../error-message.ts";

/** A file of the model directory is missing, too large or not a JSON object; the message names it. */
export class JsonFileError extends Error {
  override readonly name = "JsonFileError";
  readonly file: string;
  constructor(file: string, problem: string) {
    super(`${file}: ${problem}`);
    this.file = file;
  }
}

/** A parsed JSON object whose values nothing is known about. */
export type JsonObject = Readonly<Record<string, unknown>>;

/** Whether a value of parsed JSON is an object, not null and not a list. */
export function isJsonObject(value: unknown): value is JsonObject {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** Characters of a value that an error message shows at most. */
const MAX_SHOWN = 200;

/** A value of parsed JSON as an error message shows it: shortened, "missing" where it is undefined. */
export function shownJson(value: unknown): string {
  if (value === undefined) return "missing";
  try {
    const text = JSON.stringify(value);
    return text.length > MAX_SHOWN ? `${text.slice(0, MAX_SHOWN)}…` : text;
  } catch {
    return "a value nested too deeply to show";
  }
}

/** Reads a JSON object of at most `maxBytes`, or undefined where there is no such file. Throws JsonFileError. */
export async function readJsonFile(
  file: string,
  maxBytes: number,
): Promise<JsonObject | undefined> {
  const text = await readTextFile(file, maxBytes);
  if (text === undefined) return undefined;
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new JsonFileError(file, `not JSON: ${errorMessage(error)}`);
  }
  if (!isJsonObject(value)) throw new JsonFileError(file, "expected a JSON object");
  return value;
}

/** Reads a UTF-8 file of at most `maxBytes`, or undefined where there is none. Throws JsonFileError. */
export async function readTextFile(file: string, maxBytes: number): Promise<string | undefined> {
  try {
    const stats = await stat(file);
    if (!stats.isFile()) throw new JsonFileError(file, "not a regular file");
    if (stats.size > maxBytes) {
      throw new JsonFileError(file, `${stats.size} bytes, expected at most ${maxBytes}`);
    }
    return new TextDecoder("utf-8", { fatal: true }).decode(await readFile(file));
  } catch (error) {
    if (error instanceof JsonFileError) throw error;
    const code = (error as NodeJS.ErrnoException).code;
    if (code === "ENOENT" || code === "ENOTDIR") return undefined;
    throw new JsonFileError(file, errorMessage(error));
  }
}
