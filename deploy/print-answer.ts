/** What every subcommand does with its answer. */

import { errorMessage } from "../core/error-message.ts";

/** Prints what `answer` resolves with, or why it rejects, on stderr behind the command's name; answers the exit code, 0 or 1. */
export async function printAnswer(command: string, answer: () => Promise<string>): Promise<number> {
  try {
    process.stdout.write(await answer());
    return 0;
  } catch (error) {
    process.stderr.write(`${command}: ${errorMessage(error)}\n`);
    return 1;
  }
}

/** A value as --json shows it. */
export function jsonText(value: unknown): string {
  return `${JSON.stringify(value, undefined, 2)}\n`;
}
