/** What lies unread before a process that listens. */

import { readFileSync } from "node:fs";

/** Fields of a line of /proc/net/tcp: the address and port here, the state, and the queues. */
const LOCAL = 1;
const STATE = 3;
const QUEUES = 4;

const ESTABLISHED = "01";

/** Bytes that connections to a port of this machine have received and the process has not read; read at once, as they may be gone soon. */
export function unreadBytes(port: number): number {
  const tables = ["tcp", "tcp6"].map((name) => readFileSync(`/proc/net/${name}`, "utf8"));
  const lines = tables.flatMap((table) => table.split("\n").slice(1));
  let bytes = 0;
  for (const line of lines) {
    const fields = line.trim().split(/\s+/);
    if (fields.length <= QUEUES || fields[STATE] !== ESTABLISHED) continue;
    if (Number.parseInt(fields[LOCAL].split(":")[1], 16) !== port) continue;
    bytes += Number.parseInt(fields[QUEUES].split(":")[1], 16);
  }
  return bytes;
}
