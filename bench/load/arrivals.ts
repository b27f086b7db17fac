/** When the requests of a load run are sent. Pure. */

import type { Random } from "../../core/random.ts";
import { randomGamma } from "./distributions.ts";

/** How requests arrive. */
export interface ArrivalProcess {
  /** Requests per second; Infinity sends as soon as the concurrency allows (closed loop). */
  readonly requestRate: number;
  /** Shape of the gamma-distributed gaps: 1 is a Poisson process, less comes in bursts, more is steadier. */
  readonly burstiness: number;
}

/** Milliseconds after the start at which each of `count` requests arrives, ascending; the first arrives at once. */
export function arrivalTimes(process: ArrivalProcess, count: number, random: Random): number[] {
  if (process.requestRate === Infinity) return Array.from({ length: count }, () => 0);
  const times: number[] = [];
  let at = 0;
  for (let i = 0; i < count; i++) {
    times.push(at);
    const scale = 1 / (process.requestRate * process.burstiness);
    at += randomGamma(random, process.burstiness) * scale * 1000;
  }
  return times;
}
