/** What a step that does not come to its end means for the requests that it was for. */

import { errorMessage } from "../../core/error-message.ts";
import { StepFailedError, UnavailableError } from "./errors.ts";

/** Longest wait for a step where the maker of the engine does not say, milliseconds; a first one may compile kernels. */
export const STEP_TIMEOUT_MS = 60_000;

/** Longest delay that a timer takes. */
const MAX_TIMER_MS = 2 ** 31 - 1;

/** A step did not return: the device hangs, and nothing behind it will ever run. */
export class StepTimeoutError extends Error {
  override readonly name = "StepTimeoutError";
  constructor(timeoutMs: number) {
    super(`a step did not return within ${timeoutMs / 1000} s; the device counts as hung`);
  }
}

/**
 * The step's own outcome, or StepTimeoutError when the device takes too long; Infinity waits for ever.
 * @param lastAwayAt when the step last waited for others than the device, milliseconds of performance.now(): such waits
 *   have deadlines of their own
 */
export async function withinStepTimeout<T>(
  step: Promise<T>,
  timeoutMs: number,
  lastAwayAt: () => number = () => -Infinity,
): Promise<T> {
  if (timeoutMs > MAX_TIMER_MS) return step;
  const late = Promise.withResolvers<never>();
  const startedAt = performance.now();
  const check = () => {
    const aloneMs = performance.now() - Math.max(startedAt, lastAwayAt());
    if (aloneMs < timeoutMs) timer = setTimeout(check, Math.ceil(timeoutMs - aloneMs));
    else late.reject(new StepTimeoutError(timeoutMs));
  };
  let timer = setTimeout(check, timeoutMs);
  try {
    return await Promise.race([step, late.promise]);
  } finally {
    clearTimeout(timer);
  }
}

/** AbortError: the step was not wanted any more; OperationError: WebGPU's word where the device is lost. */
const AWAY: ReadonlySet<string> = new Set(["AbortError", "OperationError"]);

/** What a failed step's requests end with: UnavailableError where experts or the device are away, else StepFailedError. */
export function stepFailure(error: unknown): Error {
  const message = `a step of the request failed: ${errorMessage(error)}`;
  const away =
    error instanceof UnavailableError || (error instanceof Error && AWAY.has(error.name));
  return away
    ? new UnavailableError(message, { cause: error })
    : new StepFailedError(message, { cause: error });
}
