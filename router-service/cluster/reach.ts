/** What rows can be sent to: a shard, or the router's own device; and who knows them all. */

import type { Placement } from "../../core/placement/placement.ts";
import type { DispatchHeader, PackedDispatch } from "../../core/wire.ts";
import type { Changes } from "./changes.ts";
import type { ResendReason } from "./dispatch/resend.ts";
import type { MeasuredSpeed } from "./shards/shard-speed.ts";
import type { SpeedSample } from "./shards/steady-speed.ts";
import type { DispatchHandle } from "./shards/shard-stream.ts";

/** A shard that can compute for an epoch. */
export interface Reach {
  /** False where it is silent or far behind: it is not asked while another copy can be. */
  readonly trusted: boolean;
  readonly speed: MeasuredSpeed;
  /** Sends rows. */
  dispatch(header: Omit<DispatchHeader, "dispatchId">, payload: PackedDispatch): DispatchHandle;
  /** Forecast for a dispatch; undefined before the first answer. */
  expectedSeconds(bytes: number, pairs: number): number | undefined;
  /** Takes note of an answer. */
  observe(sample: SpeedSample): void;
  /** Takes note that an answer is so late that its rows went to another copy too. */
  overdue(): void;
}

/** All shards of a cluster, and what they hold. */
export interface Directory {
  /** Undefined before there is one. */
  placement(): Placement | undefined;
  /** Undefined where the shard is away, does not hold what it is to hold in the epoch, or is in quarantine. */
  reach(rank: number, epoch: number): Reach | undefined;
  /** Tells of everything that may give an expert a copy that can be used. */
  readonly changes: Changes;
  /** Why experts without a copy will not get one; undefined where they may. */
  hopeless(): string | undefined;
  /** Which shards experts are without; undefined where all have a copy. */
  missing(): string | undefined;
  /** Takes note that a dispatch to a shard failed. */
  failed(rank: number, epoch: number, reason: ResendReason): void;
  /** Takes note that a shard's sums were right to be wrong: the rows are to blame. */
  forgive(rank: number): void;
  /** Counts a dispatch of an epoch until the function that it gives is called. */
  begin(epoch: number): () => void;
}
