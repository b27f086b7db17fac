/** What processes there are, from /proc. */

import { readFileSync } from "node:fs";
import { readdir, readFile } from "node:fs/promises";

/** Process ids of all descendants of a process, children first. */
export async function descendants(pid: number): Promise<number[]> {
  const parents = new Map<number, number>();
  for (const entry of await readdir("/proc")) {
    if (!/^\d+$/.test(entry)) continue;
    const stat = await readFile(`/proc/${entry}/stat`, "utf8").catch(() => undefined);
    // The name in parentheses may hold anything; the fields after the last one do not.
    const fields = stat?.slice(stat.lastIndexOf(")") + 2).split(" ");
    if (fields) parents.set(Number(entry), Number(fields[1]));
  }
  const found: number[] = [];
  let generation = [pid];
  while (generation.length > 0) {
    generation = [...parents].filter(([, parent]) => generation.includes(parent)).map(([id]) => id);
    found.push(...generation);
  }
  return found;
}

/** Whether a process is there and not a zombie, which stays where nobody collects orphans. */
export function isAlive(pid: number): boolean {
  try {
    return !/\) [ZX] /.test(readFileSync(`/proc/${pid}/stat`, "utf8"));
  } catch {
    return false;
  }
}

/** Command line of a process; empty where it is gone. */
export async function commandLine(pid: number): Promise<string> {
  const text = await readFile(`/proc/${pid}/cmdline`, "utf8").catch(() => "");
  return text.replaceAll("\0", " ");
}
