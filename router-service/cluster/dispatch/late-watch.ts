/** Tells which answers are late, with one timer for all of them. */

import type { Changes } from "../changes.ts";

/** An answer that is waited for. */
export interface Awaited {
  readonly dueAt: number;
  /** Whether it matters that it is late; a change of the cluster may make it matter. */
  matters: boolean;
  readonly onLate: () => void;
}

/** The answers under way. No timer runs for those whose lateness does not matter. */
export class LateWatch {
  readonly #changes: Changes;
  readonly #awaited = new Set<Awaited>();
  #timer: NodeJS.Timeout | undefined;
  #looksAt = Infinity;
  #listens = false;

  constructor(changes: Changes) {
    this.#changes = changes;
  }

  /** Calls `onLate` once after `afterMs`, or when it begins to matter, until `delete`. */
  add(afterMs: number, matters: boolean, onLate: () => void): Awaited {
    const one = { dueAt: performance.now() + afterMs, matters, onLate };
    this.#awaited.add(one);
    if (matters) this.#lookAt(one.dueAt);
    else void this.#listen();
    return one;
  }

  delete(one: Awaited): void {
    this.#awaited.delete(one);
  }

  /** Sees to it that there is a look then, or before. */
  #lookAt(at: number): void {
    if (at >= this.#looksAt) return;
    clearTimeout(this.#timer);
    this.#looksAt = at;
    this.#timer = setTimeout(
      () => {
        // What has arrived by now is read before this counts; what is sent meanwhile is not late.
        const now = performance.now();
        setImmediate(() => this.#look(now));
      },
      Math.max(1, Math.ceil(at - performance.now())),
    );
  }

  #look(now: number): void {
    this.#looksAt = Infinity;
    let next = Infinity;
    const late: Awaited[] = [];
    for (const one of this.#awaited) {
      if (!one.matters) continue;
      if (one.dueAt > now) next = Math.min(next, one.dueAt);
      else late.push(one);
    }
    for (const one of late.sort((a, b) => a.dueAt - b.dueAt)) {
      // Another's being late may have settled it.
      if (this.#awaited.delete(one)) one.onLate();
    }
    if (next < Infinity) this.#lookAt(next);
  }

  async #listen(): Promise<void> {
    if (this.#listens) return;
    this.#listens = true;
    await this.#changes.next;
    this.#listens = false;
    for (const one of this.#awaited) {
      one.matters = true;
      this.#lookAt(one.dueAt);
    }
  }
}
