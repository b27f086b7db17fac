/** What goes wrong in a chaos run, and when: a pure function of its seed. */

import { drawBelow, seededRandom, type Random } from "../../core/random.ts";
import type { Corruption } from "../../bench/rig/byte-flipper.ts";

/** One thing that goes wrong. Whom it hits is given by a number in [0, 1), a share of those that live then. */
export type Disturbance =
  /** kill -9 of a shard; it starts again after `backAfterMs`, at its old address or a new one. */
  | {
      readonly kind: "kill";
      readonly shard: number;
      readonly backAfterMs: number;
      readonly newAddress: boolean;
    }
  /** SIGSTOP of a shard, SIGCONT after `forMs`. */
  | { readonly kind: "freeze"; readonly shard: number; readonly forMs: number }
  | {
      readonly kind: "slow link";
      readonly shard: number;
      readonly delayMs: number;
      readonly bytesPerSecond: number;
      readonly forMs: number;
    }
  /** A link on which nothing passes for a while, its connections open. */
  | { readonly kind: "stalled link"; readonly shard: number; readonly forMs: number }
  | { readonly kind: "reset"; readonly shard: number; readonly times: number }
  | {
      readonly kind: "corrupted bytes";
      readonly shard: number;
      readonly corruption: Corruption;
      readonly forMs: number;
    }
  /** A new shard registers. */
  | { readonly kind: "join" }
  /** A shard is drained, and stopped when it says that it may be. */
  | { readonly kind: "drain"; readonly shard: number }
  /** kill -9 of Redis, started again at once, empty. */
  | { readonly kind: "Redis restart" }
  /** Redis is gone for a while; a shard that is given is killed meanwhile, and starts again after Redis has. */
  | { readonly kind: "Redis outage"; readonly forMs: number; readonly shard: number | undefined }
  /** kill -9 of one of two routers; it starts again at once. */
  | { readonly kind: "router restart"; readonly router: number };

/** Bounds of what goes wrong. */
export interface ChaosShape {
  /** Longest freeze, stall, slow link, corruption and absence of a killed shard, milliseconds. */
  readonly maxFaultMs: number;
  readonly redisOutageMs: number;
  /** Share of the rounds in which two things go wrong at once. */
  readonly besideShare: number;
}

/** Faults of links alone: all processes stay as they are. */
const LINK_FAULTS: ReadonlySet<Disturbance["kind"]> = new Set([
  "slow link",
  "reset",
  "corrupted bytes",
]);

type Draw = (random: Random, shape: ChaosShape) => Disturbance;

function between(random: Random, low: number, high: number): number {
  return low + drawBelow(random, Math.max(1, high - low));
}

/** Every kind of disturbance. */
const KINDS: readonly Draw[] = [
  (random, { maxFaultMs }) => ({
    kind: "kill",
    shard: random(),
    backAfterMs: between(random, 0, maxFaultMs),
    newAddress: false,
  }),
  (random, { maxFaultMs }) => ({
    kind: "kill",
    shard: random(),
    backAfterMs: between(random, 0, maxFaultMs),
    newAddress: true,
  }),
  (random, { maxFaultMs }) => ({
    kind: "freeze",
    shard: random(),
    forMs: between(random, 100, maxFaultMs),
  }),
  (random, { maxFaultMs }) => ({
    kind: "slow link",
    shard: random(),
    delayMs: between(random, 5, 150),
    bytesPerSecond: between(random, 200_000, 2_000_000),
    forMs: between(random, maxFaultMs / 2, maxFaultMs),
  }),
  (random, { maxFaultMs }) => ({
    kind: "stalled link",
    shard: random(),
    forMs: between(random, 100, maxFaultMs),
  }),
  (random) => ({ kind: "reset", shard: random(), times: between(random, 1, 4) }),
  (random, { maxFaultMs }) => ({
    kind: "corrupted bytes",
    shard: random(),
    corruption: {
      where: random() < 0.5 ? "payload" : "length",
      everyBytes: between(random, 500, 10_000),
    },
    forMs: between(random, maxFaultMs / 2, maxFaultMs),
  }),
  (random, { maxFaultMs }) => ({
    kind: "corrupted bytes",
    shard: random(),
    corruption: { where: "anywhere", everyBytes: between(random, 2_000, 30_000) },
    forMs: between(random, maxFaultMs / 2, maxFaultMs),
  }),
  () => ({ kind: "join" }),
  (random) => ({ kind: "drain", shard: random() }),
  () => ({ kind: "Redis restart" }),
  (random, { redisOutageMs }) => ({
    kind: "Redis outage",
    forMs: redisOutageMs,
    shard: random() < 0.7 ? random() : undefined,
  }),
  (random) => ({ kind: "router restart", router: random() }),
];

/** The kinds in a random order (Fisher and Yates). */
function shuffled(random: Random): Draw[] {
  const kinds = [...KINDS];
  for (let at = kinds.length - 1; at > 0; at--) {
    const other = drawBelow(random, at + 1);
    [kinds[at], kinds[other]] = [kinds[other], kinds[at]];
  }
  return kinds;
}

/** Things that go wrong at once. */
export interface ChaosRound {
  readonly main: Disturbance;
  /** What ails another link meanwhile. */
  readonly beside: Disturbance | undefined;
}

/**
 * The rounds of a run in their order, without end: every kind is the main one once in each turn of all kinds, in a new
 * order, so that a run of one turn has all. Beside it, in `besideShare` of the rounds, is a fault of a link.
 */
export function* chaosSchedule(seed: number, shape: ChaosShape): Generator<ChaosRound, never> {
  const random = seededRandom(seed);
  for (;;) {
    for (const draw of shuffled(random)) {
      const main = draw(random, shape);
      const draws = KINDS.filter((one) => LINK_FAULTS.has(one(random, shape).kind));
      const beside =
        random() < shape.besideShare
          ? draws[drawBelow(random, draws.length)](random, shape)
          : undefined;
      yield { main, beside };
    }
  }
}

/** How many rounds have every kind among them. */
export const CHAOS_TURN = KINDS.length;
