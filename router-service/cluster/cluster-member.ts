/** What a cluster knows and wants of each of its members: shards, and the router's own device. */

import type { ShardPlacement } from "../../proto/gen/switchyard/v1/cluster.ts";
import type { ShardHello, ShardStatus } from "../../proto/gen/switchyard/v1/expert.ts";
import type { Reach } from "./reach.ts";
import type { ResendReason } from "./dispatch/resend.ts";
import type { MeasuredSpeed } from "./shards/shard-speed.ts";
import type { SteadySpeed } from "./shards/steady-speed.ts";

/** away: no stream; loading: connected, some placement is not resident yet; draining: it serves, and is to leave. */
export type MemberState = "away" | "loading" | "ready" | "draining";

/** What a router knows of a shard. */
export interface MemberView {
  readonly address: string;
  /** Undefined before its first hello. */
  readonly rank: number | undefined;
  readonly state: MemberState;
  /** Why it is away or loading, or can not leave: no shard that stays has room. */
  readonly reason: string | undefined;
  /** Its last. */
  readonly hello: ShardHello | undefined;
  /** Its last on this stream. */
  readonly status: ShardStatus | undefined;
  /** Epochs of which it holds all that it was told to. */
  readonly epochs: readonly number[];
  readonly speed: MeasuredSpeed;
  /** The same as plans take it. */
  readonly steady: SteadySpeed;
  /** It said nothing for longer than it should, or is far behind with an answer: it gets no rows that others can take. */
  readonly suspect: boolean;
  /** Unix milliseconds until which it gets no rows, for it was found wrong. */
  readonly quarantinedUntil: number | undefined;
}

/** What happened to a shard; away: it is so still, maybe for another reason; quarantined: it is, or not any more. */
export type MemberEvent = "joined" | "lost" | "away" | "placed" | "draining" | "quarantined";

/** A member of a cluster. */
export interface ClusterMember extends Reach {
  readonly address: string;
  /** Undefined before its first hello. */
  readonly rank: number | undefined;
  readonly hello: ShardHello | undefined;
  readonly connected: boolean;
  /** It is to leave, by its own last word. */
  readonly draining: boolean;
  /** Whether it holds all that it was told to for an epoch. */
  holds(epoch: number): boolean;
  /** Whether rows of an epoch may be sent to it: it holds what it was told to, and is not in quarantine. */
  serves(epoch: number): boolean;
  /** Why it can not compute for an epoch. */
  reasonAgainst(epoch: number | undefined): string;
  /** Has it hold a placement; rejects where it does not. */
  place(placement: ShardPlacement): Promise<void>;
  /** Has it hold a placement anew that it lost. */
  placeAgain(placement: ShardPlacement): void;
  /** Nothing is dispatched to an epoch below this one any more. */
  release(oldestLiveEpoch: number): void;
  /** A placement is given up, and the one of `oldestLiveEpoch` stays. */
  abandon(epoch: number, oldestLiveEpoch: number): void;
  /** Takes note of a dispatch that failed for a fault of its. */
  failed(reason: ResendReason): void;
  /** Ends a quarantine. */
  forgive(): void;
  /** Tells it that it is to leave, or to stay after all; false where it can not. */
  drain(cancel: boolean): boolean;
  /** What is known, with the member counting as loading where it does not hold `epoch`. */
  view(epoch: number | undefined): MemberView;
  close(reason?: string): Promise<void>;
}
