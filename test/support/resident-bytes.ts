/** How much memory a process has. */

import { readFile } from "node:fs/promises";

/** Resident memory of a process, bytes. Rejects where it does not run. */
export async function residentBytes(pid: number): Promise<number> {
  const status = await readFile(`/proc/${pid}/status`, "utf8");
  return Number(/VmRSS:\s+(\d+) kB/.exec(status)?.[1]) * 1024;
}
