/** One shard of a cluster as its router knows it: where it stands, what it said, and how fast it was. */

import type { Logger } from "../../core/platform/log.ts";
import type { ShardPlacement } from "../../proto/gen/switchyard/v1/cluster.ts";
import type { RouterHello, ShardHello, ShardStatus } from "../../proto/gen/switchyard/v1/expert.ts";
import { ShardClient } from "./shard-client.ts";
import { type MeasuredSpeed, ShardSpeed, type SpeedSample } from "./shard-speed.ts";
import type { ShardStream } from "./shard-stream.ts";

/** away: no stream; loading: connected, some placement is not resident yet; draining: it serves, and is to leave. */
export type MemberState = "away" | "loading" | "ready" | "draining";

/** What a router knows of a shard. */
export interface MemberView {
  readonly address: string;
  /** Undefined before its first hello. */
  readonly rank: number | undefined;
  readonly state: MemberState;
  /** Why it is away or loading. */
  readonly reason: string | undefined;
  /** Its last. */
  readonly hello: ShardHello | undefined;
  /** Its last on this stream. */
  readonly status: ShardStatus | undefined;
  /** Epochs of which it holds all that it was told to. */
  readonly epochs: readonly number[];
  readonly speed: MeasuredSpeed;
  /** Milliseconds since the epoch of Date until which it gets no rows, for it was found wrong. */
  readonly quarantinedUntil: number | undefined;
}

/** What happened to a shard; away: it is so still, maybe for another reason. */
export type MemberEvent = "joined" | "lost" | "away" | "placed" | "draining";

/** What a member needs. */
export interface MemberOptions {
  readonly address: string;
  readonly hello: RouterHello;
  readonly logger: Logger;
  /** Judges a hello; gives what to place on the shard first. Throws to refuse it. */
  readonly judge: (member: Member, hello: ShardHello) => readonly ShardPlacement[];
  readonly onEvent: (member: Member, event: MemberEvent) => void;
}

/** A shard of the cluster. */
export class Member {
  readonly address: string;
  readonly #client: ShardClient;
  #hello: ShardHello | undefined;
  #status: ShardStatus | undefined;
  #speed = new ShardSpeed();
  #connected = false;

  constructor({ address, hello, logger, judge, onEvent }: MemberOptions) {
    this.address = address;
    this.#client = new ShardClient({
      address,
      hello,
      logger,
      onHello: (theirs) => {
        const placements = judge(this, theirs);
        if (theirs.incarnation !== this.#hello?.incarnation) this.#speed = new ShardSpeed();
        this.#hello = theirs;
        this.#status = undefined;
        return placements;
      },
      onStatus: (status) => {
        const before = this.#status?.draining ?? false;
        this.#status = status;
        if (status.draining !== before) onEvent(this, "draining");
      },
      onChange: () => {
        const was = this.#connected;
        this.#connected = this.connected;
        if (was) onEvent(this, this.#connected ? "placed" : "lost");
        else onEvent(this, this.#connected ? "joined" : "away");
      },
    });
  }

  get rank(): number | undefined {
    return this.#hello?.rank;
  }

  get hello(): ShardHello | undefined {
    return this.#hello;
  }

  get connected(): boolean {
    return this.#client.state.kind === "connected";
  }

  /** The stream to dispatch rows of an epoch to; undefined where the shard does not hold what it was told for it. */
  streamOf(epoch: number): ShardStream | undefined {
    const { state } = this.#client;
    return state.kind === "connected" && state.epochs.has(epoch) ? state.stream : undefined;
  }

  /** Why the shard can not compute for an epoch. */
  reasonAgainst(epoch: number | undefined): string {
    const { state } = this.#client;
    if (state.kind === "away") return state.reason;
    return epoch === undefined ? "it is connected" : "its placement is being loaded";
  }

  /** Has the shard hold a placement; see ShardClient.place. */
  place(placement: ShardPlacement): Promise<void> {
    return this.#client.place(placement);
  }

  /** See ShardClient.release. */
  release(oldestLiveEpoch: number): void {
    this.#client.release(oldestLiveEpoch);
  }

  /** Tells the shard that it is to leave, or to stay after all; false where it is away. */
  drain(cancel: boolean): boolean {
    const { state } = this.#client;
    if (state.kind === "connected") state.stream.drain(cancel);
    return state.kind === "connected";
  }

  /** Takes note of an answered dispatch. */
  observe(sample: SpeedSample): void {
    this.#speed.observe(sample);
  }

  /** What is known, with the shard counting as loading where it does not hold `epoch`. */
  view(epoch: number | undefined): MemberView {
    const { state } = this.#client;
    const connected = state.kind === "connected";
    const loading = connected && epoch !== undefined && !state.epochs.has(epoch);
    const draining = this.#status?.draining ?? false;
    const able = loading ? "loading" : draining ? "draining" : "ready";
    return {
      address: this.address,
      rank: this.rank,
      state: connected ? able : "away",
      reason: connected && !loading ? undefined : this.reasonAgainst(epoch),
      hello: this.#hello,
      status: this.#status,
      epochs: connected ? [...state.epochs].sort((a, b) => a - b) : [],
      speed: this.#speed.measured,
      quarantinedUntil: undefined,
    };
  }

  async close(reason?: string): Promise<void> {
    await this.#client.close(reason);
  }
}
