/** Those who wait until the engine's queue has room. */

/** Waiters in order of coming. */
export class QueueRoom {
  readonly #waiters = new Set<() => void>();

  /** Settles when it is this one's turn. Rejects with the signal's reason. */
  async wait(signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const onAbort = () => reject(signal.reason);
    this.#waiters.add(resolve);
    signal.addEventListener("abort", onAbort);
    try {
      await promise;
    } finally {
      this.#waiters.delete(resolve);
      signal.removeEventListener("abort", onAbort);
    }
  }

  /** Wakes the first `count` of those who wait. */
  wake(count: number): void {
    for (const waiter of [...this.#waiters].slice(0, Math.max(0, count))) waiter();
  }
}
