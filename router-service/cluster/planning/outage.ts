/** What a router plans by itself while the placements' store is away: when, and under which epochs. */

import { drawBelow, type Random } from "../../../core/random.ts";
import type { Cluster } from "../cluster.ts";
import type { Membership } from "../membership-static.ts";
import type { FoundPlacement, PlacementStore } from "./placement-store.ts";

/**
 * How long something urgent stands before the router that led last plans for it, and before the others do, milliseconds:
 * what the first has shards load is there by then, and the others load theirs beside it.
 */
const LEADER_WAIT_MS = 1_000;
const OTHERS_WAIT_MS = 3_000;

/**
 * Epochs of a router alone are drawn from a range that begins so far after all that it knows, so that neither another
 * router alone comes to the same one nor those that are published one by one do.
 */
const EPOCH_GAP = 2 ** 20;
const EPOCH_RANGE = 2 ** 32;

/** One router's part in outages of the store. Times are milliseconds of one clock. */
export class Outage {
  readonly #random: Random;
  #urgentSince: number | undefined;
  #last = 0;

  constructor(random: Random) {
    this.#random = random;
  }

  /** The store is there. */
  end(): void {
    this.#urgentSince = undefined;
  }

  /** Milliseconds until this router is to plan; undefined while nothing is urgent. */
  waitMs(urgent: boolean, ledLast: boolean, now: number): number | undefined {
    this.#urgentSince = urgent ? (this.#urgentSince ?? now) : undefined;
    if (this.#urgentSince === undefined) return undefined;
    return Math.max(0, this.#urgentSince + (ledLast ? LEADER_WAIT_MS : OTHERS_WAIT_MS) - now);
  }

  /** Whether it gave this epoch last. */
  gave(epoch: number): boolean {
    return epoch === this.#last;
  }

  /** An epoch later than another and than all it gave before, and no other router's. */
  epochAfter(after: number): number {
    this.#last = Math.max(after, this.#last) + EPOCH_GAP + drawBelow(this.#random, EPOCH_RANGE);
    return this.#last;
  }
}

/** The newest epoch that the store or a router knows of, where nothing can be read also a shard; 0 where there is none. */
export function newestEpoch(
  { stored, epoch }: Pick<FoundPlacement, "stored" | "epoch">,
  {
    cluster,
    membership,
    store,
  }: {
    readonly cluster: Pick<Cluster, "members">;
    readonly membership: Pick<Membership, "routers">;
    readonly store: Pick<PlacementStore, "shared">;
  },
): number {
  // Shards may serve other routers as well, whose epochs mean nothing here.
  const members = store.shared && stored === undefined ? cluster.members() : [];
  return Math.max(
    epoch,
    ...membership.routers().map((router) => router.epoch),
    ...members.flatMap(({ status }) => status?.epochs ?? []),
  );
}
