/** What is cancelled together: as AbortController and AbortSignal are, for what begins and ends many times per step. */

/** A group of things under way. */
export class Scope {
  readonly #callbacks = new Set<(reason: unknown) => void>();
  #ended: { readonly reason: unknown } | undefined;
  #controller: AbortController | undefined;

  /** Cancels what is under way in it and in the scopes within it, once. */
  abort(reason: unknown): void {
    if (this.#ended !== undefined) return;
    this.#ended = { reason };
    this.#controller?.abort(reason);
    for (const callback of this.#callbacks) callback(reason);
    this.#callbacks.clear();
  }

  /** Throws the reason where it is cancelled. */
  throwIfAborted(): void {
    if (this.#ended !== undefined) throw this.#ended.reason;
  }

  /** Registers what to call when it is cancelled. */
  add(callback: (reason: unknown) => void): void {
    this.#callbacks.add(callback);
  }

  delete(callback: (reason: unknown) => void): void {
    this.#callbacks.delete(callback);
  }

  /** A scope that is cancelled with this one, and alone. */
  within(): Scope {
    const inner = new Scope();
    if (this.#ended !== undefined) inner.abort(this.#ended.reason);
    else this.add((reason) => inner.abort(reason));
    return inner;
  }

  /** The same as a signal, for what is rare. */
  get signal(): AbortSignal {
    if (this.#controller === undefined) {
      this.#controller = new AbortController();
      if (this.#ended !== undefined) this.#controller.abort(this.#ended.reason);
    }
    return this.#controller.signal;
  }
}
