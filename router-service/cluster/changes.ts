/** Lets many wait for the next change of a thing. */

/** A change that can be waited for. */
export class Changes {
  /** Absent while nobody waits. */
  #next: PromiseWithResolvers<void> | undefined;

  /** Settles at the next `notify`. */
  get next(): Promise<void> {
    this.#next ??= Promise.withResolvers<void>();
    return this.#next.promise;
  }

  notify(): void {
    const next = this.#next;
    this.#next = undefined;
    next?.resolve();
  }
}

/** Settles at the next change, or after `timeoutMs`. Rejects with the signal's reason. */
export async function changeOrAbort(
  changes: Changes,
  signal: AbortSignal | undefined,
  timeoutMs?: number,
): Promise<void> {
  signal?.throwIfAborted();
  const over = Promise.withResolvers<void>();
  const onAbort = () => over.reject(signal?.reason);
  signal?.addEventListener("abort", onAbort);
  const timer = timeoutMs === undefined ? undefined : setTimeout(over.resolve, timeoutMs);
  try {
    await Promise.race([changes.next, over.promise]);
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", onAbort);
  }
}

/** Whether a condition, looked at again at every change, holds within `timeoutMs`; false at once where the signal aborts. */
export async function waitFor(
  changes: Changes,
  condition: () => boolean,
  timeoutMs: number,
  signal: AbortSignal,
): Promise<boolean> {
  const endsAt = performance.now() + timeoutMs;
  while (!condition()) {
    const left = endsAt - performance.now();
    if (left <= 0 || signal.aborted) return false;
    await changeOrAbort(changes, signal, left).catch(() => undefined);
  }
  return true;
}
