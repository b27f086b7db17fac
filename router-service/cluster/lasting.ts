/** A condition that counts only once it has lasted: links break all together and come back. */

/** Holds from when its condition has stood without a break for the time that was asked for. */
export class Lasting {
  readonly #onHolds: () => void;
  #timer: NodeJS.Timeout | undefined;
  #holds = false;

  constructor(onHolds: () => void) {
    this.#onHolds = onHolds;
  }

  get holds(): boolean {
    return this.#holds;
  }

  /** The condition stands now; `graceMs` counts from when this was first said. */
  begin(graceMs: number): void {
    this.#timer ??= setTimeout(() => {
      this.#holds = true;
      this.#onHolds();
    }, graceMs);
  }

  /** It stands no more. */
  end(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#holds = false;
  }
}
