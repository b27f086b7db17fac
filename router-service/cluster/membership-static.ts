/** Who the shards and routers of a cluster are, and the list that an operator gives. */

import type { OtherModel, RouterSight } from "../../core/membership.ts";

/** A router that uses the placement. */
export interface RouterMember {
  readonly id: string;
  /** Epoch that it dispatches by; 0 before its first. */
  readonly epoch: number;
  /** Memory of its own device that routed experts may take. */
  readonly localBytes: number;
  /** What it has measured; absent: nothing is known of it. */
  readonly sight?: RouterSight | undefined;
}

/**
 * Memory that all routers' own devices have for routed experts: a copy there is on every one of them. A router that joins
 * those that work by a placement counts once it does too: until then it counts its own weights in the wider dtype.
 */
export function sharedLocalBytes(membership: Pick<Membership, "routers">): number {
  const routers = membership.routers();
  const atWork = routers.filter(({ epoch }) => epoch > 0);
  return Math.min(...(atWork.length > 0 ? atWork : routers).map(({ localBytes }) => localBytes));
}

/** Who is there, as it is known now. */
export interface Membership {
  /** Addresses of the shards to be connected to, host:port. */
  shards(): readonly string[];
  /** Every router, this one among them. */
  routers(): readonly RouterMember[];
  /** Shards of other models where this one's are looked for and none is found; absent: it is not known. */
  others?(): readonly OtherModel[];
  /** Others have been looked for at least once. */
  seen(): boolean;
  /** Registers what to call when a shard comes or goes, a router uses another epoch, or this one announces. */
  onChange(callback: () => void): void;
  /** Tells the others at once which epoch this router uses now. */
  announce(): void;
  close(): Promise<void>;
}

/** The shards of a list, and this router alone. */
export function createStaticMembership(
  shards: readonly string[],
  self: () => RouterMember,
): Membership {
  const callbacks: (() => void)[] = [];
  return {
    shards: () => shards,
    routers: () => [self()],
    seen: () => true,
    onChange: (callback) => void callbacks.push(callback),
    announce: () => {
      for (const callback of callbacks) callback();
    },
    close: async () => undefined,
  };
}
