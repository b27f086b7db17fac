/** A TCP proxy that hands every byte on after a fixed time, in order and at full bandwidth: a wire of some length. */

import { once } from "node:events";
import { connect, createServer, type AddressInfo, type Socket } from "node:net";

/** A proxy that listens. */
export interface DelayProxy {
  readonly port: number;
  close(): Promise<void>;
}

/** Something that is to be done when its time has come. */
interface Due {
  readonly at: number;
  readonly act: () => void;
}

/** Node's timers may be late by this much: the rest of a delay is slept in short naps, milliseconds. */
const TIMER_SLACK_MS = 1.2;

/** A nap: long enough for the core to serve others, short enough to be on time, milliseconds. */
const NAP_MS = 0.05;

/** Acts after a fixed delay, in the order of the calls; to about a tenth of a millisecond. */
class DelayLine {
  readonly #delayMs: number;
  readonly #sleeper = new Int32Array(new SharedArrayBuffer(4));
  #queue: Due[] = [];
  #waiting = false;

  constructor(delayMs: number) {
    this.#delayMs = delayMs;
  }

  push(act: () => void): void {
    this.#queue.push({ at: performance.now() + this.#delayMs, act });
    if (!this.#waiting) this.#wait();
  }

  #wait(): void {
    const [next] = this.#queue;
    this.#waiting = next !== undefined;
    if (!this.#waiting) return;
    const left = next.at - performance.now() - TIMER_SLACK_MS;
    if (left >= 1) setTimeout(() => this.#nap(), Math.floor(left));
    else this.#nap();
  }

  #nap(): void {
    const now = performance.now();
    while (this.#queue.length > 0 && this.#queue[0].at <= now) this.#queue.shift()?.act();
    const [next] = this.#queue;
    if (next === undefined || next.at - now > TIMER_SLACK_MS + 1) {
      this.#wait();
      return;
    }
    Atomics.wait(this.#sleeper, 0, 0, Math.min(NAP_MS, next.at - now));
    setImmediate(() => this.#nap());
  }
}

/** Listens on a free port of 127.0.0.1 and connects each client to `port`, every byte `delayMs` late in both directions. */
export async function startDelayProxy(port: number, delayMs: number): Promise<DelayProxy> {
  const line = new DelayLine(delayMs);
  const sockets = new Set<Socket>();
  const forward = (from: Socket, to: Socket) => {
    sockets.add(from);
    from.setNoDelay(true);
    from.on("data", (bytes) => line.push(() => void to.write(bytes)));
    from.on("end", () => line.push(() => void to.end()));
    from.on("error", () => to.destroy());
    from.on("close", () => {
      sockets.delete(from);
      line.push(() => void to.destroy());
    });
  };
  const server = createServer((client) => {
    const target = connect(port, "127.0.0.1");
    forward(client, target);
    forward(target, client);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    port: (server.address() as AddressInfo).port,
    close: async () => {
      for (const socket of sockets) socket.destroy();
      server.close();
      await once(server, "close");
    },
  };
}
