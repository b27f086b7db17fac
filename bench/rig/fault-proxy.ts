/** A TCP proxy with faults that are switched while it runs: late, slow, stalled, reset and corrupted connections. */

import { once } from "node:events";
import { connect, createServer, type AddressInfo, type Socket } from "node:net";

import { seededRandom, type Random } from "../../core/random.ts";
import { ByteFlipper, type Corruption } from "./byte-flipper.ts";

/** What is wrong with one direction of a link. */
export interface LinkFaults {
  /** Every byte is this late, milliseconds. */
  readonly delayMs: number;
  /** Bytes that pass in a second at most. */
  readonly bytesPerSecond: number;
  /** Nothing passes; what came is held and passes later. */
  readonly stalled: boolean;
  /** Flips bits of what passes. */
  readonly corruption: Corruption | undefined;
}

/** A link as it should be. */
const NO_FAULTS: LinkFaults = {
  delayMs: 0,
  bytesPerSecond: Infinity,
  stalled: false,
  corruption: undefined,
};

/** The two ways through the proxy: from who connects to the target, and back. */
export type Direction = "up" | "down";

/** A proxy that listens. */
export interface FaultProxy {
  readonly port: number;
  /** Where connections go from now on; undefined: they are refused. Those that stand stay. */
  setTarget(port: number | undefined): void;
  /** Faults of both directions, or of one, from now on, on all connections; what is left out is as in NO_FAULTS. */
  setFaults(faults: Partial<LinkFaults>, directions?: readonly Direction[]): void;
  /** Resets every connection (RST). Returns how many there were. */
  reset(): number;
  /** Connections that stand. */
  connections(): number;
  /** Bits flipped so far. */
  flips(): number;
  close(): Promise<void>;
}

/** Bytes that a direction of a connection holds at most before its sender has to wait. */
const MAX_HELD_BYTES = 4 << 20;

/** Bytes that are to pass at a time. */
interface Held {
  readonly at: number;
  readonly bytes: Uint8Array;
}

/** One direction of a connection. */
class Pipe {
  readonly #from: Socket;
  readonly #to: Socket;
  readonly #faults: () => LinkFaults;
  readonly #flipper: ByteFlipper;
  #held: Held[] = [];
  #heldBytes = 0;
  #freeAt = 0;
  #timer: NodeJS.Timeout | undefined;
  #ended = false;

  constructor(from: Socket, to: Socket, faults: () => LinkFaults, flipper: ByteFlipper) {
    this.#from = from;
    this.#to = to;
    this.#faults = faults;
    this.#flipper = flipper;
    from.setNoDelay(true);
    from.on("data", (bytes) => this.#hold(bytes));
    from.on("end", () => {
      this.#ended = true;
      this.pass();
    });
    // What went wrong on one side shows on the other as a reset.
    from.on("error", () => to.resetAndDestroy());
    from.on("close", () => {
      // What is held of a stream that came to its end still passes.
      if (this.#ended) return;
      clearTimeout(this.#timer);
      to.destroy();
    });
  }

  /** Passes what is due; called again by itself when the next is. */
  pass(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    if (this.#faults().stalled) return;
    const now = performance.now();
    while (this.#held.length > 0 && this.#held[0].at <= now) {
      const { bytes } = this.#held.shift() as Held;
      this.#heldBytes -= bytes.length;
      if (!this.#to.destroyed) this.#to.write(bytes);
    }
    if (this.#heldBytes < MAX_HELD_BYTES) this.#from.resume();
    if (this.#held.length > 0) {
      this.#timer = setTimeout(() => this.pass(), Math.max(1, this.#held[0].at - now));
    } else if (this.#ended) {
      this.#to.end();
    }
  }

  #hold(bytes: Buffer): void {
    const { delayMs, bytesPerSecond, corruption } = this.#faults();
    this.#flipper.flip(bytes, corruption);
    const sentAt = Math.max(performance.now(), this.#freeAt);
    this.#freeAt = sentAt + (bytes.length / bytesPerSecond) * 1000;
    this.#held.push({ at: this.#freeAt + delayMs, bytes });
    this.#heldBytes += bytes.length;
    if (this.#heldBytes >= MAX_HELD_BYTES) this.#from.pause();
    if (this.#timer === undefined) this.pass();
  }
}

/** Listens on a free port of 127.0.0.1, without faults, and connects each client to the target's port of 127.0.0.1. */
export async function startFaultProxy(
  target: number | undefined,
  seed: number,
): Promise<FaultProxy> {
  const random: Random = seededRandom(seed);
  const faults: Record<Direction, LinkFaults> = { up: NO_FAULTS, down: NO_FAULTS };
  const sockets = new Set<Socket>();
  const pipes = new Set<Pipe>();
  let targetPort = target;
  let flips = 0;

  const pipe = (from: Socket, to: Socket, direction: Direction) => {
    const flipper = new ByteFlipper(direction === "up", random, () => flips++);
    const one = new Pipe(from, to, () => faults[direction], flipper);
    sockets.add(from);
    pipes.add(one);
    from.on("close", () => {
      sockets.delete(from);
      pipes.delete(one);
    });
  };
  const server = createServer({ allowHalfOpen: true }, (client) => {
    if (targetPort === undefined) {
      client.on("error", () => undefined);
      client.resetAndDestroy();
      return;
    }
    const service = connect({ port: targetPort, host: "127.0.0.1", allowHalfOpen: true });
    pipe(client, service, "up");
    pipe(service, client, "down");
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");

  return {
    port: (server.address() as AddressInfo).port,
    setTarget: (port) => {
      targetPort = port;
    },
    setFaults: (changes, directions = ["up", "down"]) => {
      for (const direction of directions) faults[direction] = { ...NO_FAULTS, ...changes };
      for (const one of pipes) one.pass();
    },
    reset: () => {
      const count = sockets.size / 2;
      for (const socket of sockets) socket.resetAndDestroy();
      return count;
    },
    connections: () => sockets.size / 2,
    flips: () => flips,
    close: async () => {
      for (const socket of sockets) socket.destroy();
      server.close();
      await once(server, "close");
    },
  };
}
