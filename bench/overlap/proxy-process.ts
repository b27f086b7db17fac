/** A process of its own for a delay proxy: `proxy-process.ts PORT MILLISECONDS`. */

import { setPriority } from "node:os";

import { startDelayProxy } from "../rig/delay-proxy.ts";

const [port, delayMs] = process.argv.slice(2).map(Number);
try {
  // A wire does not wait for a core; a proxy would where all cores compute.
  setPriority(-20);
} catch {
  // Only an administrator may: then the wire is a little longer while all cores compute.
}
const proxy = await startDelayProxy(port, delayMs);
process.on("disconnect", () => process.exit(0));
process.send?.({ ready: true, port: proxy.port });
