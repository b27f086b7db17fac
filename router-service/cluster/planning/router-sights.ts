/**
 * How fast shards are for all routers together, as plans take them; pure.
 *
 *   what a plan takes a shard for = Σ over routers that measured it: w · what it measured / Σ w
 *
 * with w a router's share of the tokens of late (all alike where none has any), and for what is measured: the round trip,
 * seconds per byte (1 / bandwidth), seconds per pair, and the spread. A shard's seconds of a step (core/placement/objective.ts)
 * are linear in them: they come out as the mean over the tokens that wait for it. That each router waits for the slowest
 * shard of its own is not in it.
 */

import type { RouterSight } from "../../../core/membership.ts";
import type { MemberView } from "../cluster-member.ts";
import type { SteadySpeed } from "../shards/steady-speed.ts";

/** Shards that a router tells its measurements of at most: those that it knows best. */
export const MAX_SIGHTS = 512;

/** Half of the tokens that count are of the last so many seconds. */
const HALF_LIFE_SECONDS = 60;

/** Digits of what is told: more is noise. */
const DIGITS = 4;

/** Tokens per second of late, of a counter that only grows. */
export class TokenRate {
  #last: { readonly at: number; readonly tokens: number } | undefined;
  #tokens = 0;
  #seconds = 0;

  /** Takes note of the counter at a time, seconds of any clock that only goes forward; answers the rate. */
  at(seconds: number, tokens: number): number {
    const passed = seconds - (this.#last?.at ?? seconds);
    // Moments too short to say anything are part of the next one.
    if (this.#last === undefined || passed >= 0.5) {
      const keep = 2 ** (-passed / HALF_LIFE_SECONDS);
      this.#tokens = keep * this.#tokens + tokens - (this.#last?.tokens ?? tokens);
      this.#seconds = keep * this.#seconds + passed;
      this.#last = { at: seconds, tokens };
    }
    return this.#seconds === 0 ? 0 : this.#tokens / this.#seconds;
  }
}

/** What a router tells the others of the shards that it has measured. */
export function sightOf(
  tokensPerSecond: number,
  members: readonly Pick<MemberView, "rank" | "steady">[],
): RouterSight {
  const shards = members.flatMap(({ rank, steady }) => {
    const { samples, spread, roundTripSeconds, bytesPerSecond, secondsPerPair } = steady;
    if (rank === undefined || samples === 0) return [];
    const told = { roundTripSeconds, bytesPerSecond, secondsPerPair };
    const known = Object.entries(told).flatMap(([name, value]) =>
      value === undefined || !Number.isFinite(value) ? [] : [[name, rounded(value)] as const],
    );
    return [{ rank, samples, spread: rounded(spread), ...Object.fromEntries(known) }];
  });
  return {
    tokensPerSecond: rounded(tokensPerSecond),
    shards: shards.toSorted((a, b) => b.samples - a.samples).slice(0, MAX_SIGHTS),
  };
}

/** How fast a shard is for all routers; undefined where none has measured it. */
export function speedForAll(sights: readonly RouterSight[], rank: number): SteadySpeed | undefined {
  const idle = sights.every(({ tokensPerSecond }) => tokensPerSecond <= 0);
  const seen = sights.flatMap(({ tokensPerSecond, shards }) => {
    const weight = idle ? 1 : Math.max(0, tokensPerSecond);
    const shard = shards.find((one) => one.rank === rank);
    return shard === undefined ? [] : [{ ...shard, weight }];
  });
  if (seen.length === 0) return undefined;
  // Routers without traffic are all that ever measured it.
  const unweighted = seen.every(({ weight }) => weight === 0);
  const mean = (of: (shard: (typeof seen)[number]) => number | undefined) => {
    let sum = 0;
    let weights = 0;
    for (const shard of seen) {
      const value = of(shard);
      if (value === undefined) continue;
      const weight = unweighted ? 1 : shard.weight;
      sum += weight * value;
      weights += weight;
    }
    return weights === 0 ? undefined : sum / weights;
  };
  const secondsPerByte = mean(({ bytesPerSecond }) => bytesPerSecond && 1 / bytesPerSecond);
  return {
    roundTripSeconds: mean(({ roundTripSeconds }) => roundTripSeconds),
    bytesPerSecond: secondsPerByte && 1 / secondsPerByte,
    secondsPerPair: mean(({ secondsPerPair }) => secondsPerPair),
    samples: seen.reduce((sum, { samples }) => sum + samples, 0),
    spread: mean(({ spread }) => spread) ?? 0,
  };
}

function rounded(value: number): number {
  return Number(value.toPrecision(DIGITS));
}
