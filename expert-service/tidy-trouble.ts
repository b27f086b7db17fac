/** What becomes of slots that could not be freed: told once, and tried again a few times, ever later. */

import { errorMessage } from "../core/error-message.ts";
import { OutOfDeviceMemoryError } from "../core/expert-device.ts";
import type { Logger } from "../core/platform/log.ts";

/** Attempts after one that failed, and the pause before the first of them; before each other one, twice as long. */
const MAX_ATTEMPTS = 5;
const PAUSE_MS = 1_000;

/** What trouble needs. */
export interface TidyTroubleOptions {
  /** Begins another attempt. */
  readonly tryAgain: () => void;
  /** Pause before the first other attempt, milliseconds; absent: PAUSE_MS. */
  readonly pauseMs?: number;
  readonly logger: Pick<Logger, "error">;
}

/** Attempts to free slots, those that failed since the last that did not. */
export class TidyTrouble {
  readonly #options: TidyTroubleOptions;
  #attempts = 0;
  /** Why the last one failed, as it was logged. */
  #reason: string | undefined;
  #timer: NodeJS.Timeout | undefined;

  constructor(options: TidyTroubleOptions) {
    this.#options = options;
  }

  /** An attempt begins: none is needed later. */
  begin(): void {
    clearTimeout(this.#timer);
  }

  succeeded(): void {
    this.#attempts = 0;
    this.#reason = undefined;
  }

  /** What could not be freed stays for a later placement to take, or until another attempt succeeds. */
  failed(error: unknown): void {
    // Without memory for a layer twice that is as usual, and would be so again.
    if (error instanceof OutOfDeviceMemoryError) return;
    const { tryAgain, pauseMs = PAUSE_MS, logger } = this.#options;
    if (this.#attempts < MAX_ATTEMPTS) {
      this.#timer = setTimeout(tryAgain, pauseMs * 2 ** this.#attempts++);
    }
    const reason = errorMessage(error);
    if (reason === this.#reason) return;
    this.#reason = reason;
    logger.error({ reason }, "slots that no epoch names can not be freed");
  }

  /** No other attempt is made. */
  close(): void {
    this.#attempts = MAX_ATTEMPTS;
    clearTimeout(this.#timer);
  }
}
