/** Which epochs the connected routers work by; pure but for what it is told. */

/** What one router's stream has said. */
interface RouterEpochs {
  /** It dispatches to no epoch below this one. */
  oldest: number;
  /** The newest epoch that it gave a placement of, taken or not. */
  newest: number;
  readonly placed: Set<number>;
}

/** The epochs of all connected routers; a router is named by its stream. */
export class EpochsInUse {
  readonly #routers = new Map<object, RouterEpochs>();

  /** A router gave a placement, and with it the oldest epoch that it dispatches to. */
  place(router: object, epoch: number, oldest: number): void {
    const of = this.#routers.get(router) ?? { oldest: 0, newest: 0, placed: new Set() };
    of.placed.add(epoch);
    of.newest = Math.max(of.newest, epoch);
    of.oldest = Math.max(of.oldest, Math.min(oldest, epoch));
    this.#routers.set(router, of);
  }

  /** A placement was not taken: the router can not use its epoch. */
  refuse(router: object, epoch: number): void {
    this.#routers.get(router)?.placed.delete(epoch);
  }

  /** The newest epoch whose placement was taken from a router; 0 where there is none. */
  newest(router: object): number {
    return Math.max(0, ...(this.#routers.get(router)?.placed ?? []));
  }

  /** A router dispatches to no epoch below `oldest` any more. Throws RangeError for one that it gave no placement of. */
  release(router: object, oldest: number): void {
    const of = this.#routers.get(router);
    const newest = of?.newest ?? 0;
    if (of === undefined || oldest > newest) {
      throw new RangeError(`oldest_live_epoch ${oldest}, the newest placement is of ${newest}`);
    }
    of.oldest = Math.max(of.oldest, oldest);
    for (const epoch of of.placed) if (epoch < oldest) of.placed.delete(epoch);
  }

  /** A router's stream has ended. */
  leave(router: object): void {
    this.#routers.delete(router);
  }

  /** Whether this router may dispatch to an epoch. */
  needsOf(router: object, epoch: number): boolean {
    const of = this.#routers.get(router);
    return of !== undefined && epoch >= of.oldest && of.placed.has(epoch);
  }

  /** Whether a router other than `except` may dispatch to an epoch. */
  needs(epoch: number, except?: object): boolean {
    return this.#routers.keys().some((router) => router !== except && this.needsOf(router, epoch));
  }

  /** Whether a router gave a placement of this epoch last. */
  isAwaited(epoch: number): boolean {
    return this.#routers.keys().some((router) => this.newest(router) === epoch);
  }

  /** Whether every connected router has said that it dispatches to later epochs only; false where none is connected. */
  isOver(epoch: number): boolean {
    const routers = [...this.#routers.values()];
    return routers.length > 0 && routers.every(({ oldest }) => epoch < oldest);
  }
}
