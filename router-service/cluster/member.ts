/** One shard of a cluster as its router knows it: where it stands, what it said, and how fast it was. */

import type { Logger } from "../../core/platform/log.ts";
import type { ShardPlacement } from "../../proto/gen/switchyard/v1/cluster.ts";
import type { RouterHello, ShardHello, ShardStatus } from "../../proto/gen/switchyard/v1/expert.ts";
import type { DispatchHeader, PackedDispatch } from "../../core/wire.ts";
import { Quarantine } from "./shards/quarantine.ts";
import type { ClusterMember, MemberEvent, MemberView } from "./cluster-member.ts";
import type { ResendReason } from "./dispatch/resend.ts";
import { ShardClient } from "./shards/shard-client.ts";
import { type MeasuredSpeed, ShardSpeed } from "./shards/shard-speed.ts";
import type { SpeedSample } from "./shards/steady-speed.ts";
import type { DispatchHandle } from "./shards/shard-stream.ts";

/** A shard that says something every second is not asked first after this time without a word, and given up after the other. */
const SUSPECT_MS = 1_500;
const SILENT_MS = 3_000;

/** What a shard that says hello is told to hold. */
export interface FirstPlacements {
  readonly placements: readonly ShardPlacement[];
  /** Why it is not told of one that it is to hold; undefined where it is told of all. */
  readonly withheld: string | undefined;
}

/** What a member needs. */
export interface MemberOptions {
  readonly address: string;
  readonly hello: RouterHello;
  readonly logger: Logger;
  /** Judges a hello; gives what to place on the shard first. Throws to refuse it. */
  readonly judge: (member: Member, hello: ShardHello) => FirstPlacements;
  readonly onEvent: (member: Member, event: MemberEvent) => void;
}

/** A shard of the cluster. */
export class Member implements ClusterMember {
  readonly address: string;
  readonly #options: MemberOptions;
  readonly #quarantine = new Quarantine();
  readonly #client: ShardClient;
  #hello: ShardHello | undefined;
  #status: ShardStatus | undefined;
  /** What it was told last of room elsewhere, since it is to leave. */
  #toldOfRoom = "";
  /** Its last word was that it may be terminated. */
  #safe = false;
  /** Why it was not told of its placement; undefined where it was. */
  #withheld: string | undefined;
  #speed = new ShardSpeed();
  #connected = false;
  #overdueAt = -Infinity;
  #quarantineTimer: NodeJS.Timeout | undefined;

  constructor(options: MemberOptions) {
    const { address, hello, logger, judge, onEvent } = options;
    this.address = address;
    this.#options = options;
    this.#client = new ShardClient({
      address,
      hello,
      logger,
      onHello: (theirs) => {
        const { placements, withheld } = judge(this, theirs);
        if (theirs.incarnation !== this.#hello?.incarnation) {
          this.#speed = new ShardSpeed();
          this.forgive();
        }
        this.#hello = theirs;
        this.#status = undefined;
        this.#toldOfRoom = "";
        this.#withheld = withheld;
        if (withheld !== undefined) {
          logger.warn({ shard: address, rank: theirs.rank, reason: withheld }, "shard not placed");
        }
        return placements;
      },
      onStatus: (status) => {
        const before = this.#status?.draining ?? false;
        this.#status = status;
        if (!status.draining) this.#toldOfRoom = "";
        const wasSafe = this.#safe;
        this.#safe = status.draining && status.released;
        if (this.#safe && !wasSafe) {
          logger.info({ shard: address, rank: this.rank }, "shard is safe to terminate");
        }
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

  get draining(): boolean {
    return this.#status?.draining ?? false;
  }

  get quarantined(): boolean {
    return this.#quarantine.until(Date.now()) !== undefined;
  }

  holds(epoch: number): boolean {
    const { state } = this.#client;
    return state.kind === "connected" && state.epochs.has(epoch);
  }

  serves(epoch: number): boolean {
    return this.holds(epoch) && !this.quarantined;
  }

  get trusted(): boolean {
    const { state } = this.#client;
    if (state.kind === "away") return false;
    return this.#overdueAt <= state.stream.lastMessageAt && this.#silentMs() < SUSPECT_MS;
  }

  get speed(): MeasuredSpeed {
    return this.#speed.measured;
  }

  dispatch(header: Omit<DispatchHeader, "dispatchId">, payload: PackedDispatch): DispatchHandle {
    return this.#client.dispatch(header, payload);
  }

  expectedSeconds(bytes: number, pairs: number): number | undefined {
    return this.#speed.expectedSeconds(bytes, pairs);
  }

  overdue(): void {
    this.#overdueAt = performance.now();
  }

  /** Gives the stream up where the shard, which speaks every second, has been silent for long. */
  checkSilence(): void {
    const { state } = this.#client;
    const silentMs = this.#silentMs();
    if (state.kind === "away" || silentMs < SILENT_MS) return;
    state.stream.end(`no message for ${Math.round(silentMs)} ms`);
  }

  /** Takes note of a dispatch that failed for a fault of the shard's. */
  failed(reason: ResendReason): void {
    const now = Date.now();
    if (this.#quarantine.until(now) !== undefined) return;
    const forMs =
      reason === "wrong_result"
        ? this.#quarantine.wrong(now)
        : reason === "checksum"
          ? this.#quarantine.checksum(now)
          : undefined;
    if (forMs === undefined) return;
    const { logger, onEvent } = this.#options;
    logger.error({ shard: this.address, rank: this.rank, reason, forMs }, "shard in quarantine");
    clearTimeout(this.#quarantineTimer);
    this.#quarantineTimer = setTimeout(() => onEvent(this, "quarantined"), forMs + 1);
    onEvent(this, "quarantined");
  }

  /** Ends a quarantine. */
  forgive(): void {
    const was = this.#quarantine.until(Date.now()) !== undefined;
    this.#quarantine.forgive();
    clearTimeout(this.#quarantineTimer);
    if (was) this.#options.onEvent(this, "quarantined");
  }

  #silentMs(): number {
    const { state } = this.#client;
    if (state.kind === "away") return 0;
    return performance.now() - state.stream.lastMessageAt;
  }

  /** Why the shard can not compute for an epoch. */
  reasonAgainst(epoch: number | undefined): string {
    const { state } = this.#client;
    if (state.kind === "away") return state.reason;
    if (this.quarantined) return "it is in quarantine";
    if (epoch === undefined) return "it is connected";
    return this.#withheld ?? "its placement is being loaded";
  }

  /** Has the shard hold a placement; see ShardClient.place. */
  place(placement: ShardPlacement): Promise<void> {
    this.#withheld = undefined;
    return this.#client.place(placement);
  }

  /** See ShardClient.placeAgain. */
  placeAgain(placement: ShardPlacement): void {
    this.#client.placeAgain(placement);
  }

  /** See ShardClient.release. */
  release(oldestLiveEpoch: number): void {
    this.#client.release(oldestLiveEpoch);
  }

  /** See ShardClient.abandon. */
  abandon(epoch: number, oldestLiveEpoch: number): void {
    this.#client.abandon(epoch, oldestLiveEpoch);
  }

  /** Tells the shard that it is to leave, or to stay after all; false where it is away. */
  drain(cancel: boolean): boolean {
    const { state } = this.#client;
    if (state.kind === "connected") state.stream.drain(cancel);
    return state.kind === "connected";
  }

  /** Tells the shard, where it is to leave, why no other has room for what it holds; empty: one has. */
  tellLeaving(unplaceable: string): void {
    const { state } = this.#client;
    if (state.kind === "away" || !this.draining || unplaceable === this.#toldOfRoom) return;
    this.#toldOfRoom = unplaceable;
    state.stream.leavingOutlook(unplaceable);
  }

  /** Takes note of an answered dispatch. */
  observe(sample: SpeedSample): void {
    this.#speed.observe(sample, performance.now() / 1000);
  }

  /** What is known, with the shard counting as loading where it does not hold `epoch`. */
  view(epoch: number | undefined): MemberView {
    const { state } = this.#client;
    const connected = state.kind === "connected";
    const loading = connected && epoch !== undefined && !state.epochs.has(epoch);
    const able = loading ? "loading" : this.draining ? "draining" : "ready";
    return {
      address: this.address,
      rank: this.rank,
      state: connected ? able : "away",
      reason: connected && !loading ? undefined : this.reasonAgainst(epoch),
      hello: this.#hello,
      status: this.#status,
      epochs: connected ? [...state.epochs].sort((a, b) => a - b) : [],
      speed: this.#speed.measured,
      steady: this.#speed.steady,
      suspect: connected && !this.trusted,
      quarantinedUntil: this.#quarantine.until(Date.now()),
    };
  }

  async close(reason?: string): Promise<void> {
    clearTimeout(this.#quarantineTimer);
    await this.#client.close(reason);
  }
}
