/** How long placements stand, learnt from those before; pure. Times are seconds of one clock. */

/** The placements so far. */
export interface Standing {
  /** Since when the one in use stands. */
  readonly since: number;
  /** Seconds that those before it stood, and how many they were; older ones in part. */
  readonly seconds: number;
  readonly ends: number;
}

/** What a placement is expected to stand before any has shown it, and within which bounds afterwards, seconds. */
const FIRST_GUESS = 120;
const LEAST = 30;
const MOST = 3_600;

/** What a placement counts when one more has followed: about the last five do. */
const KEPT = 0.8;

/** Before the first placement is replaced. */
export function firstStanding(now: number): Standing {
  return { since: now, seconds: 0, ends: 0 };
}

/** After another placement is in use, all of its stages. */
export function afterMove({ since, seconds, ends }: Standing, now: number): Standing {
  return { since: now, seconds: seconds * KEPT + Math.max(0, now - since), ends: ends * KEPT + 1 };
}

/**
 * Seconds that the next placement is expected to stand: all that placements have stood over how many were replaced, the
 * first guess being one of them. One that stands for long says so before it ends.
 */
export function standsFor({ since, seconds, ends }: Standing, now: number): number {
  const all = FIRST_GUESS + seconds + Math.max(0, now - since);
  return Math.min(MOST, Math.max(LEAST, all / (1 + ends)));
}
