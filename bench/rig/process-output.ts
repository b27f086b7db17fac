/** What a process writes: the end of it, for messages of failures, and each line to who counts them. */

import { createInterface } from "node:readline";
import type { Readable } from "node:stream";

/** Longest output that is kept of a process, characters. */
export const MAX_OUTPUT = 200_000;

/** Keeps the end of what comes from streams, MAX_OUTPUT characters, and gives it; `onLine` hears each of their lines, as it comes. */
export function keepOutput(
  streams: readonly Readable[],
  onLine?: (line: string) => void,
): () => string {
  let output = "";
  for (const stream of streams) {
    stream.on("data", (bytes: Buffer) => {
      output = (output + bytes.toString()).slice(-MAX_OUTPUT);
    });
    if (onLine) createInterface({ input: stream, crlfDelay: Infinity }).on("line", onLine);
  }
  return () => output;
}
