/** Ports that a process is to listen on: whether they are free, and what is said where one is not. */

import { once } from "node:events";
import { createServer, type Server } from "node:net";

import { hostPort } from "./service-options.ts";

/** An address can not be listened on. */
export class ListenError extends Error {
  override readonly name = "ListenError";
}

/** The error of an address that can not be listened on: why not, and what to do, `portFlag` being the flag that chooses its port. */
export function listenError(address: string, portFlag: string, reason: string): ListenError {
  const taken = `another program listens there; stop it, or choose another port with ${portFlag}, 0 for a free one`;
  const hints: Readonly<Record<string, string>> = {
    EADDRINUSE: taken,
    EADDRNOTAVAIL: "this machine has no such address; choose another with --host",
    EACCES: `this user may not; choose a port from 1024 with ${portFlag}`,
  };
  const code = Object.keys(hints).find((one) => reason.includes(one));
  const why = code === undefined ? reason : `${hints[code]} (${code})`;
  return new ListenError(`can not listen on ${address}: ${why}`);
}

/**
 * Resolves where each flag's port can be listened on now; 0 always can. Rejects with ListenError of the first that can not,
 * so that what takes long need not be started for nothing. None is kept.
 */
export async function requireFreePorts(
  host: string,
  ports: Readonly<Record<string, number>>,
): Promise<void> {
  const held: Server[] = [];
  try {
    for (const [flag, port] of Object.entries(ports)) {
      if (port === 0) continue;
      const server = createServer().listen(port, host);
      await once(server, "listening").catch((error: Error) => {
        throw listenError(hostPort(host, port), flag, error.message);
      });
      held.push(server);
    }
  } finally {
    await Promise.all(held.map((server) => once(server.close(), "close")));
  }
}
