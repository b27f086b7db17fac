/** A process of its own for a delay proxy: `proxy-process.ts PORT MILLISECONDS`. */

import { startDelayProxy } from "../../test/support/delay-proxy.ts";

const [port, delayMs] = process.argv.slice(2).map(Number);
const proxy = await startDelayProxy(port, delayMs);
process.on("disconnect", () => process.exit(0));
process.send?.({ ready: true, port: proxy.port });
