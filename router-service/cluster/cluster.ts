/** The expert shards of a router, as one: who is there, who holds what, and the remote half of `runExperts`. */

import { checkHellos, checkTolerance, HandshakeError } from "../../core/handshake.ts";
import type { WeightsDtype } from "../../core/expert-device.ts";
import type { Logger } from "../../core/platform/log.ts";
import type { WireSetting } from "../../core/wire-rows.ts";
import { PROTOCOL_VERSION } from "../../core/wire.ts";
import type { ShardPlacement } from "../../proto/gen/switchyard/v1/cluster.ts";
import type { RouterHello, ShardHello } from "../../proto/gen/switchyard/v1/expert.ts";
import { UnavailableError } from "../engine/errors.ts";
import type { RunExperts } from "../engine/run-experts.ts";
import { adopt, switchTo } from "./adoption.ts";
import { Changes, changeOrAbort } from "./changes.ts";
import { Member, type MemberEvent, type MemberView } from "./member.ts";
import { missingExperts } from "./missing-experts.ts";
import { type ClusterPlacement, planCluster, type PlanInput } from "./plan.ts";
import { createRemoteExperts, type DispatchReport } from "./remote-experts.ts";
import { shardPlacement } from "./shard-placement.ts";

/** What a cluster is made of. */
export interface ClusterOptions extends PlanInput {
  /** Addresses of the shards at first, host:port. */
  readonly shards: readonly string[];
  /** Plan the first placement when all shards have said hello; else the first one is adopted. Default: true. */
  readonly plansFirst?: boolean;
  /** Name of this router in the shards' logs. */
  readonly routerId: string;
  readonly modelHash: string;
  readonly wire: WireSetting;
  readonly dispatchTimeoutMs: number;
  readonly logger: Logger;
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
  /** Runs routed experts on the shards. Rejects with an UnavailableError. */
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
  /** Dtype of weights in the cluster, once there is a placement. Rejects with PlacementError or HandshakeError where it can not work. */
  weights(): Promise<WeightsDtype>;
  /** Resolves when every expert has a living copy. Rejects as `weights`, and on close. */
  ready(): Promise<void>;
  /** Why new requests are to be refused: some expert has no living copy. */
  unavailableReason(): string | undefined;
  close(): Promise<void>;
}

/** Starts connecting to the shards; returns at once. */
export function createCluster(options: ClusterOptions): Cluster {
  return new ShardCluster(options);
}

class ShardCluster implements Cluster {
  readonly runExperts: RunExperts;
  readonly #options: ClusterOptions;
  readonly #hello: RouterHello;
  readonly #members = new Map<string, Member>();
  readonly #leaving = new Set<Promise<void>>();
  readonly #changes = new Changes();
  readonly #stop = new AbortController();
  readonly #decided = Promise.withResolvers<WeightsDtype>();
  readonly #callbacks = new Set<(change: ClusterChange) => void>();
  #adopting: Promise<unknown> = Promise.resolve();
  #current: ClusterPlacement | undefined;
  /** Being adopted. */
  #next: ClusterPlacement | undefined;
  #missing: { readonly reason: string | undefined } | undefined;

  constructor(options: ClusterOptions) {
    this.#options = options;
    const { modelHash, weights, experts, routerId } = options;
    this.#hello = { protocolVersion: PROTOCOL_VERSION, modelHash, weights, experts, routerId };
    this.#decided.promise.catch(() => {});
    this.runExperts = createRemoteExperts({
      hiddenSize: options.config.hiddenSize,
      wire: options.wire,
      dispatchTimeoutMs: Math.ceil(options.dispatchTimeoutMs),
      onDispatch: options.onDispatch,
      placement: () => this.#current?.placement,
      shard: (rank) => this.#memberOf(rank),
      unavailable: () => new UnavailableError(this.unavailableReason() ?? "no shard is ready"),
    });
    this.setMembers(options.shards);
  }

  members(): MemberView[] {
    const epoch = this.#current?.placement.epoch;
    return [...this.#members.values()].map((member) => member.view(epoch));
  }

  setMembers(addresses: readonly string[]): void {
    if (this.#stop.signal.aborted) return;
    const wanted = new Set(addresses);
    for (const [address, member] of this.#members) {
      if (wanted.has(address)) continue;
      this.#members.delete(address);
      const gone = member.close("the shard is no member any more");
      this.#leaving.add(gone);
      void gone.finally(() => this.#leaving.delete(gone));
      this.#notify({ kind: "left", member: member.view(this.#current?.placement.epoch) });
    }
    for (const address of wanted) {
      if (this.#members.has(address)) continue;
      const member = new Member({
        address,
        hello: this.#hello,
        logger: this.#options.logger,
        judge: (one, hello) => this.#judge(one, hello),
        onEvent: (one, event) => this.#onEvent(one, event),
      });
      this.#members.set(address, member);
    }
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
    return this.#memberOf(rank)?.drain(cancel) ?? false;
  }

  weights(): Promise<WeightsDtype> {
    return this.#decided.promise;
  }

  async ready(): Promise<void> {
    await this.#decided.promise;
    while (this.unavailableReason() !== undefined) {
      await changeOrAbort(this.#changes, this.#stop.signal);
    }
  }

  unavailableReason(): string | undefined {
    if (this.#missing === undefined) {
      const members = [...this.#members.values()];
      this.#missing = { reason: missingExperts(this.#current?.placement, members) };
    }
    return this.#missing.reason;
  }

  async close(): Promise<void> {
    const stopped = new UnavailableError("the router is stopping");
    this.#stop.abort(stopped);
    this.#decided.reject(stopped);
    await Promise.all([...this.#members.values()].map((member) => member.close()));
    await Promise.all(this.#leaving);
  }

  #memberOf(rank: number): Member | undefined {
    let found: Member | undefined;
    for (const member of this.#members.values()) {
      // An address that the shard had before may still be named.
      if (member.rank === rank && !found?.connected) found = member;
    }
    return found;
  }

  #judge(member: Member, hello: ShardHello): ShardPlacement[] {
    checkHellos(this.#hello, hello);
    checkTolerance(hello.conformanceTolerance);
    for (const other of this.#members.values()) {
      if (other !== member && other.connected && other.rank === hello.rank) {
        throw new HandshakeError(`rank ${hello.rank}: shard ${other.address} has it too`);
      }
    }
    return [this.#current, this.#next].flatMap((stored) =>
      stored === undefined ? [] : [this.#messageFor(stored, hello.rank)],
    );
  }

  #messageFor(stored: ClusterPlacement, rank: number): ShardPlacement {
    const oldest = this.#current?.placement.epoch ?? stored.placement.epoch;
    return shardPlacement(stored, rank, this.#options.overlay, oldest);
  }

  #onEvent(member: Member, kind: MemberEvent): void {
    this.#notify({ kind, member: member.view(this.#current?.placement.epoch) });
    if (kind === "joined") this.#planFirst();
  }

  #notify(change: ClusterChange): void {
    this.#missing = undefined;
    this.#changes.notify();
    for (const callback of this.#callbacks) callback(change);
  }

  #planFirst(): void {
    if (this.#options.plansFirst === false || (this.#current ?? this.#next) !== undefined) return;
    const hellos = [...this.#members.values()].map(({ hello }) => hello);
    if (!hellos.every((hello) => hello !== undefined)) return;
    let first: ClusterPlacement;
    try {
      first = planCluster(this.#options, hellos);
    } catch (error) {
      this.#decided.reject(error);
      this.#notify({ kind: "adopted" });
      return;
    }
    // A shard that refuses it is away with its reason, and asked again.
    this.adopt(first).catch(() => {});
  }

  async #adopt(stored: ClusterPlacement, signal: AbortSignal): Promise<void> {
    const { placement, weights, experts } = stored;
    const before = this.#current;
    if (before?.placement.epoch === placement.epoch) return;
    switchTo(before, stored);
    this.#next = stored;
    if (before === undefined) this.#switch(stored);
    const { epoch } = placement;
    const { logger } = this.#options;
    logger.info({ epoch, weights, experts, members: this.#members.size }, "placement decided");
    this.#decided.resolve(weights);
    try {
      const members = () => [...this.#members.values()];
      const message = (rank: number) => this.#messageFor(stored, rank);
      await adopt({ stored, before, members, message, changes: this.#changes, signal });
      this.#switch(stored);
    } finally {
      this.#next = undefined;
    }
    for (const member of this.#members.values()) member.release(epoch);
    logger.info({ epoch }, "placement adopted");
  }

  #switch(stored: ClusterPlacement): void {
    this.#current = stored;
    this.#notify({ kind: "adopted" });
  }
}
