/** The expert shards of a router, as one: who is there, who holds what, and the remote half of `runExperts`. */

import type { WeightsDtype } from "../../core/expert-device.ts";
import { formatsOf } from "../../core/expert-formats.ts";
import { moeLayers } from "../../core/model/config.ts";
import type { Logger } from "../../core/platform/log.ts";
import type { WireSetting } from "../../core/wire-rows.ts";
import { PROTOCOL_VERSION } from "../../core/wire.ts";
import type { ShardPlacement } from "../../proto/gen/switchyard/v1/cluster.ts";
import type { ShardHello } from "../../proto/gen/switchyard/v1/expert.ts";
import { UnavailableError } from "../engine/errors.ts";
import type { RunExperts } from "../engine/run-experts.ts";
import { adopt, switchTo } from "./adoption.ts";
import { Availability } from "./availability.ts";
import type { DispatchReport } from "./dispatch/attempts.ts";
import { Changes, changeOrAbort } from "./changes.ts";
import { EpochUse } from "./dispatch/epoch-use.ts";
import type { RecoveryObserver } from "./dispatch/layer-call.ts";
import type { ClusterMember, MemberEvent, MemberView } from "./cluster-member.ts";
import { LocalRank, type LocalRankOptions } from "./local-rank.ts";
import type { FirstPlacements } from "./member.ts";
import { missingExperts } from "./dispatch/missing-experts.ts";
import type { ClusterPlacement, PlanInput } from "./planning/first-placement.ts";
import { bytesIn, rankBytes } from "./planning/held-bytes.ts";
import type { Directory } from "./reach.ts";
import { createRemoteExperts } from "./dispatch/remote-experts.ts";
import { Roster } from "./roster.ts";
import { shardPlacement } from "./shards/shard-placement.ts";

/** What a cluster is made of. */
export interface ClusterOptions extends PlanInput, RecoveryObserver {
  /** Addresses of the shards at first, host:port. */
  readonly shards: readonly string[];
  /** The router's own device as a shard of rank LOCAL_RANK; absent: it holds no routed experts. */
  readonly local?: LocalRankOptions;
  /** Name of this router in the shards' logs. */
  readonly routerId: string;
  readonly modelHash: string;
  readonly wire: WireSetting;
  readonly dispatchTimeoutMs: number;
  /** Milliseconds that a layer of a step waits for its experts to have a copy again. */
  readonly copyWaitMs: number;
  /** Milliseconds for which lost experts are waited for before requests are refused; absent: those of Availability. */
  readonly patienceMs?: number;
  readonly logger: Logger;
  /** Copies of an expert take their planned shares of its rows; default: each row goes where it is done soonest. */
  readonly splitByShares?: boolean;
  /** Called after every dispatch, answered or not; returns at once. */
  readonly onDispatch?: (report: DispatchReport) => void;
}

/** What happened in a cluster: to a shard, or to the placement. */
export interface ClusterChange {
  readonly kind: MemberEvent | "left" | "adopted";
  /** The shard that it happened to. */
  readonly member?: MemberView;
}

/** The shards, connected and kept connected. */
export interface Cluster {
  /**
   * Runs routed experts on the shards; rows whose dispatch fails go to another copy, or wait for one.
   * Rejects with an UnavailableError.
   */
  readonly runExperts: RunExperts;
  /** What is known of each shard, in the order of the addresses. */
  members(): MemberView[];
  /** Connects to shards at new addresses, lets go of those that are not named, keeps the others. */
  setMembers(addresses: readonly string[]): void;
  /**
   * Has every shard that is there hold what a placement says, then works by it, then has them free what only the one before
   * needed. Before the first, it works by the placement at once. One that is away gets it when it comes back.
   * Rejects with PlacementError, and goes on as before, where the epoch is none to go to, a shard does not get there, or an
   * expert would lose its last living copy; with the signal's reason where that aborts.
   */
  adopt(stored: ClusterPlacement, signal?: AbortSignal): Promise<void>;
  /** What the cluster works by; undefined before the first placement. */
  current(): ClusterPlacement | undefined;
  /** Registers what to call on changes; gives what ends that. */
  onChange(callback: (change: ClusterChange) => void): () => void;
  /** Tells a shard that it is to leave, or to stay after all; false where no shard with this rank is connected. */
  drain(rank: number, cancel: boolean): boolean;
  /** Says why there is no first placement yet. */
  setUndecided(reason: string): void;
  /** Says why no shard that stays has room for all experts, so that requests need not wait for long; undefined where that is over. */
  setUnplaceable(reason: string | undefined): void;
  /** Dtype of weights in the cluster, once there is a placement. Rejects on close. */
  weights(): Promise<WeightsDtype>;
  /** Resolves when every expert has a living copy. Rejects on close. */
  ready(): Promise<void>;
  /** Which shards experts are without; undefined where every expert has a living copy. */
  missingReason(): string | undefined;
  /** Why new requests are to be refused: experts never had copies, nobody has room for them, or no shard is left. */
  unavailableReason(): string | undefined;
  /** Why requests that run will not get on: experts never had copies, or shards are left without room for them. */
  hopelessReason(): string | undefined;
  /** When the rows of a step were last with the shards, milliseconds of performance.now(); now, where some are. */
  lastBusyAt(): number;
  close(): Promise<void>;
}

/** Starts connecting to the shards; returns at once. */
export function createCluster(options: ClusterOptions): Cluster {
  return new ShardCluster(options);
}

class ShardCluster implements Cluster {
  readonly runExperts: RunExperts;
  readonly #options: ClusterOptions;
  readonly #roster: Roster;
  readonly #changes = new Changes();
  readonly #stop = new AbortController();
  readonly #use = new EpochUse();
  readonly #decided = Promise.withResolvers<WeightsDtype>();
  readonly #callbacks = new Set<(change: ClusterChange) => void>();
  #adopting: Promise<unknown> = Promise.resolve();
  #current: ClusterPlacement | undefined;
  /** Being adopted. */
  #next: ClusterPlacement | undefined;
  #missing: { readonly reason: string | undefined } | undefined;
  #undecided: string | undefined;
  readonly #availability: Availability;
  #calls = 0;
  #lastBusyAt = -Infinity;

  constructor(options: ClusterOptions) {
    this.#options = options;
    const { modelHash, weights, experts, routerId, logger, config } = options;
    this.#decided.promise.catch(() => {});
    this.#availability = new Availability(() => this.#changes.notify(), options.patienceMs);
    this.#roster = new Roster({
      hello: { protocolVersion: PROTOCOL_VERSION, modelHash, weights, experts, routerId },
      logger,
      local:
        options.local &&
        new LocalRank(options.local, (member, event) => this.#onEvent(member, event)),
      placementsFor: (hello) => this.#placementsFor(hello),
      onEvent: (member, event) => this.#onEvent(member, event),
    });
    this.runExperts = createRemoteExperts({
      ...options,
      hiddenSize: config.hiddenSize,
      numExperts: config.numExperts,
      layers: moeLayers(config),
      dispatchTimeoutMs: Math.ceil(options.dispatchTimeoutMs),
      directory: this.#directory(),
      onCall: (began) => this.#onCall(began),
    });
    this.setMembers(options.shards);
  }

  members(): MemberView[] {
    return this.#roster.members.map((member) => this.#view(member));
  }

  setMembers(addresses: readonly string[]): void {
    this.#roster.set(addresses);
  }

  adopt(stored: ClusterPlacement, signal?: AbortSignal): Promise<void> {
    const { signal: stopped } = this.#stop;
    const either = signal === undefined ? stopped : AbortSignal.any([signal, stopped]);
    const done = this.#adopting.then(() => this.#adopt(stored, either));
    this.#adopting = done.catch(() => {});
    return done;
  }

  current(): ClusterPlacement | undefined {
    return this.#current;
  }

  onChange(callback: (change: ClusterChange) => void): () => void {
    this.#callbacks.add(callback);
    return () => this.#callbacks.delete(callback);
  }

  drain(rank: number, cancel: boolean): boolean {
    return this.#roster.find(rank)?.drain(cancel) ?? false;
  }

  setUndecided(reason: string): void {
    this.#undecided = reason;
    this.#missing = undefined;
  }

  setUnplaceable(reason: string | undefined): void {
    this.#availability.setUnplaceable(reason);
    this.#roster.tellLeaving(reason);
    this.#changes.notify();
  }

  weights(): Promise<WeightsDtype> {
    return this.#decided.promise;
  }

  async ready(): Promise<void> {
    await this.#decided.promise;
    while (this.missingReason() !== undefined) {
      await changeOrAbort(this.#changes, this.#stop.signal);
    }
  }

  missingReason(): string | undefined {
    if (this.#missing === undefined) {
      const { members } = this.#roster;
      const reason = missingExperts(this.#current?.placement, members, this.#undecided);
      this.#missing = { reason };
      const { hasStaying: staying, hasPlanned: planned } = this.#roster;
      this.#availability.note({ missing: reason, staying, planned });
    }
    return this.#missing.reason;
  }

  unavailableReason(): string | undefined {
    this.missingReason();
    return this.#availability.refusal();
  }

  hopelessReason(): string | undefined {
    this.missingReason();
    return this.#availability.hopeless();
  }

  lastBusyAt(): number {
    return this.#calls > 0 ? performance.now() : this.#lastBusyAt;
  }

  async close(): Promise<void> {
    const stopped = new UnavailableError("the router is stopping");
    this.#stop.abort(stopped);
    this.#decided.reject(stopped);
    await this.#roster.close();
    this.#availability.close();
  }

  #directory(): Directory {
    return {
      placement: () => this.#current?.placement,
      reach: (rank, epoch) => {
        const member = this.#roster.find(rank);
        return member?.serves(epoch) ? member : undefined;
      },
      changes: this.#changes,
      hopeless: () =>
        this.#stop.signal.aborted ? "the router is stopping" : this.hopelessReason(),
      missing: () => this.missingReason(),
      failed: (rank, epoch, reason) => this.#onFailed(rank, epoch, reason),
      forgive: (rank) => this.#roster.find(rank)?.forgive(),
      begin: (epoch) => this.#use.begin(epoch),
    };
  }

  #onFailed(rank: number, epoch: number, reason: Parameters<Directory["failed"]>[2]): void {
    const member = this.#roster.find(rank);
    member?.failed(reason);
    if (reason !== "wrong_epoch" || epoch !== this.#current?.placement.epoch) return;
    member?.placeAgain(this.#messageFor(this.#current, rank));
  }

  #onCall(began: boolean): void {
    this.#calls += began ? 1 : -1;
    this.#lastBusyAt = performance.now();
  }

  /** What a shard is to hold now; one that came back with less memory than that takes is left for the planner to see. */
  #placementsFor({ rank, memoryBytes }: ShardHello): FirstPlacements {
    const { config, overlay } = this.#options;
    const placements: ShardPlacement[] = [];
    let withheld: string | undefined;
    for (const stored of new Set([this.#current, this.#next])) {
      if (stored === undefined) continue;
      const { epoch, layers } = stored.placement;
      const bytesOf = bytesIn({ config, formatOf: formatsOf(overlay, stored.experts) });
      const bytes = rankBytes(bytesOf, layers, rank);
      if (bytes <= memoryBytes) placements.push(this.#messageFor(stored, rank));
      else withheld = `placement ${epoch} takes ${bytes} bytes there, it has ${memoryBytes}`;
    }
    return { placements, withheld };
  }

  #messageFor(stored: ClusterPlacement, rank: number): ShardPlacement {
    const { placement } = this.#current ?? stored;
    const held = { placement, addressOf: (holder: number) => this.#giver(holder, placement.epoch) };
    return shardPlacement(stored, rank, this.#options.overlay, placement.epoch, held);
  }

  /** Where other shards may fetch what a rank holds in an epoch; undefined where it is better left alone. */
  #giver(rank: number, epoch: number): string | undefined {
    const member = this.#roster.find(rank);
    const gives = member?.connected === true && member.trusted && member.serves(epoch);
    return gives ? member.address : undefined;
  }

  #view(member: ClusterMember): MemberView {
    const view = member.view(this.#current?.placement.epoch);
    const { unplaceable } = this.#availability;
    const isHeldUp = view.state === "draining" && view.status?.released !== true;
    return isHeldUp && unplaceable !== undefined ? { ...view, reason: unplaceable } : view;
  }

  #onEvent(member: ClusterMember, kind: MemberEvent | "left"): void {
    this.#notify({ kind, member: this.#view(member) });
    if (kind === "draining") this.#roster.tellLeaving(this.#availability.unplaceable);
  }

  #notify(change: ClusterChange): void {
    this.#missing = undefined;
    this.missingReason();
    this.#changes.notify();
    for (const callback of this.#callbacks) callback(change);
  }

  async #adopt(stored: ClusterPlacement, signal: AbortSignal): Promise<void> {
    const { placement, weights, experts } = stored;
    const { epoch } = placement;
    const { logger } = this.#options;
    const before = this.#current;
    if (before?.placement.epoch === epoch) return;
    switchTo(before, stored);
    this.#next = stored;
    if (before === undefined) this.#switch(stored);
    logger.info({ epoch, weights, experts }, "placement decided");
    this.#decided.resolve(weights);
    try {
      const members = () => this.#roster.members;
      const message = (rank: number) => this.#messageFor(stored, rank);
      await adopt({ stored, before, members, message, changes: this.#changes, signal });
      this.#switch(stored);
    } catch (error) {
      const stays = before?.placement.epoch;
      if (stays !== undefined) {
        for (const member of this.#roster.members) member.abandon(epoch, stays);
      }
      throw error;
    } finally {
      this.#next = undefined;
    }
    await this.#use.unusedBelow(epoch, this.#stop.signal);
    for (const member of this.#roster.members) member.release(epoch);
    logger.info({ epoch }, "placement adopted");
  }

  #switch(stored: ClusterPlacement): void {
    this.#current = stored;
    this.#notify({ kind: "adopted" });
  }
}
