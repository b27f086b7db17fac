/** Which epochs rows are with shards for: what is not used any more can be released. */

import { Changes, changeOrAbort } from "../changes.ts";

/** Counts dispatches by epoch. */
export class EpochUse {
  readonly #counts = new Map<number, number>();
  readonly #ended = new Changes();

  /** Counts a dispatch until the function that it gives is called. */
  begin(epoch: number): () => void {
    this.#counts.set(epoch, (this.#counts.get(epoch) ?? 0) + 1);
    return () => {
      const left = (this.#counts.get(epoch) ?? 1) - 1;
      if (left > 0) {
        this.#counts.set(epoch, left);
      } else {
        this.#counts.delete(epoch);
        this.#ended.notify();
      }
    };
  }

  /** Settles when no dispatch of an epoch below this one is left. Rejects with the signal's reason. */
  async unusedBelow(epoch: number, signal: AbortSignal): Promise<void> {
    while ([...this.#counts.keys()].some((one) => one < epoch)) {
      await changeOrAbort(this.#ended, signal);
    }
  }
}
