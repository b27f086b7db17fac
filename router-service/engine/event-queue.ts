/** Events of one request on their way from the engine's loop to its reader. */

/** A queue with one reader. It holds what its request may generate at most: the loop never waits for a reader. */
export class EventQueue<T> {
  #events: T[] = [];
  #end: { readonly error?: Error } | undefined;
  #wake: (() => void) | undefined;

  push(event: T): void {
    if (this.#end !== undefined) return;
    this.#events.push(event);
    this.#wake?.();
  }

  /** No more events; an error is thrown to the reader after those that are there. */
  end(error?: Error): void {
    this.#end ??= { error };
    this.#wake?.();
  }

  /** The events as they come. Throws the error that the queue ended with. */
  async *read(): AsyncGenerator<T, void> {
    for (;;) {
      const events = this.#events;
      this.#events = [];
      yield* events;
      if (this.#events.length > 0) continue;
      if (this.#end !== undefined) break;
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
      this.#wake = undefined;
    }
    if (this.#end.error !== undefined) throw this.#end.error;
  }
}
