/** Deadlines of what a driver is asked outside of a request: opening, compiling, filling, measuring. */

/** A driver did not answer in time. */
export class DeviceTimeoutError extends Error {
  override readonly name = "DeviceTimeoutError";
}

/** Longest that a device may take over its first runs, milliseconds: drivers of software adapters compile for tens of seconds. */
const DEVICE_TIMEOUT_MS = 300_000;

/**
 * The answer, if it comes within the time; what comes later is dropped.
 * Rejects with DeviceTimeoutError naming what was waited for and how long.
 */
export async function inTime<T>(
  what: string,
  answer: Promise<T>,
  timeoutMs = DEVICE_TIMEOUT_MS,
): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(
      () =>
        reject(new DeviceTimeoutError(`no answer to ${what} within ${Math.round(timeoutMs)} ms`)),
      timeoutMs,
    );
  });
  try {
    return await Promise.race([answer, late]);
  } finally {
    clearTimeout(timer);
  }
}
