/** Waiting for a condition with a deadline, in place of sleeping. */

import { setTimeout as sleep } from "node:timers/promises";

/** Time between two looks at the condition unless told otherwise, milliseconds. */
const INTERVAL_MS = 20;

/**
 * Looks every `intervalMs` until `probe` gives something other than undefined or false, and returns it.
 * Throws after `deadlineMs`, naming what was waited for and the probe's last error.
 */
export async function waitFor<T>(
  what: string,
  probe: () => Promise<T | undefined | false> | T | undefined | false,
  deadlineMs = 10_000,
  intervalMs = INTERVAL_MS,
): Promise<T> {
  const endsAt = performance.now() + deadlineMs;
  let lastError: unknown;
  for (;;) {
    try {
      const value = await probe();
      if (value !== undefined && value !== false) return value;
      lastError = undefined;
    } catch (error) {
      lastError = error;
    }
    if (performance.now() > endsAt)
      throw new Error(`waited ${deadlineMs} ms for ${what}`, { cause: lastError });
    await sleep(intervalMs);
  }
}
