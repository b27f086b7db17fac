/** The expert shards of a router, as one: who is there, who holds what, and the remote half of `runExperts`. */

import { checkHellos, checkTolerance, HandshakeError } from "../../core/handshake.ts";
import type { WeightsSetting } from "../../core/handshake.ts";
import type { WeightsDtype } from "../../core/expert-device.ts";
import type { ExpertFormat } from "../../core/expert-format.ts";
import type { ExpertsSetting } from "../../core/expert-formats.ts";
import type { ModelOverlay } from "../../core/model/overlay.ts";
import type { ModelConfig } from "../../core/model/config.ts";
import type { Logger } from "../../core/platform/log.ts";
import type { WireSetting } from "../../core/wire-rows.ts";
import { PROTOCOL_VERSION } from "../../core/wire.ts";
import type { ShardPlacement } from "../../proto/gen/switchyard/v1/cluster.ts";
import type { RouterHello, ShardHello } from "../../proto/gen/switchyard/v1/expert.ts";
import { UnavailableError } from "../engine/errors.ts";
import type { RunExperts } from "../engine/run-experts.ts";
import { planCluster, type ClusterPlan, type PlannedShard } from "./plan.ts";
import { createRemoteExperts, type DispatchReport } from "./remote-experts.ts";
import { ShardClient } from "./shard-client.ts";

/** What a cluster is made of. */
export interface ClusterOptions {
  /** Addresses of the shards, host:port. */
  readonly shards: readonly string[];
  /** Name of this router in the shards' logs. */
  readonly routerId: string;
  readonly modelHash: string;
  readonly config: ModelConfig;
  /** The router's --weights. */
  readonly weights: WeightsSetting;
  /** The router's own adapter offers shader-f16. */
  readonly shaderF16: boolean;
  /** The router's --experts-bits. */
  readonly experts: ExpertsSetting;
  /** The format that the checkpoint has all experts in; undefined: floats. */
  readonly storedExperts: ExpertFormat | undefined;
  readonly overlay?: ModelOverlay;
  readonly wire: WireSetting;
  readonly dispatchTimeoutMs: number;
  readonly logger: Logger;
  /** Called after every dispatch, answered or not; returns at once. */
  readonly onDispatch?: (report: DispatchReport) => void;
}

/** The shards, connected and kept connected. */
export interface Cluster {
  /** Runs routed experts on the shards. Rejects with an UnavailableError. */
  readonly runExperts: RunExperts;
  /** Dtype of weights in the cluster, once every shard has said hello. Rejects with PlacementError or HandshakeError where it can not work. */
  weights(): Promise<WeightsDtype>;
  /** Resolves when every expert has a living copy. Rejects as `weights`, and on close. */
  ready(): Promise<void>;
  /** Why new requests are to be refused: some expert has no living copy. */
  unavailableReason(): string | undefined;
  /** Registers what to call when a shard that held experts is gone. */
  onLost(callback: (reason: string) => void): void;
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
  readonly #clients: ShardClient[];
  readonly #hellos: (ShardHello | undefined)[];
  readonly #decided = Promise.withResolvers<ClusterPlan>();
  readonly #lostCallbacks: ((reason: string) => void)[] = [];
  #plan: ClusterPlan | undefined;
  #readyWaiters: PromiseWithResolvers<void>[] = [];

  constructor(options: ClusterOptions) {
    this.#options = options;
    const { modelHash, weights, experts, routerId, shards, logger } = options;
    this.#hello = { protocolVersion: PROTOCOL_VERSION, modelHash, weights, experts, routerId };
    this.#hellos = shards.map(() => undefined);
    this.#decided.promise.catch((error) => this.#settleReady(error));
    this.#clients = shards.map(
      (address, index) =>
        new ShardClient({
          address,
          hello: this.#hello,
          logger,
          onHello: (hello) => this.#onHello(index, hello),
          onReady: () => this.#settleReady(),
          onLost: (reason) => this.#onLost(address, reason),
        }),
    );
    this.runExperts = createRemoteExperts({
      hiddenSize: options.config.hiddenSize,
      wire: options.wire,
      dispatchTimeoutMs: Math.ceil(options.dispatchTimeoutMs),
      onDispatch: options.onDispatch,
      plan: () => this.#plan,
      shard: (index) => this.#clients[index],
      unavailable: () => new UnavailableError(this.unavailableReason() ?? "no shard is ready"),
    });
  }

  async weights(): Promise<WeightsDtype> {
    return (await this.#decided.promise).formats.weights;
  }

  async ready(): Promise<void> {
    await this.#decided.promise;
    if (this.unavailableReason() === undefined) return;
    const waiter = Promise.withResolvers<void>();
    this.#readyWaiters.push(waiter);
    await waiter.promise;
  }

  unavailableReason(): string | undefined {
    const needed =
      this.#plan === undefined
        ? this.#clients
        : this.#plan.shards
            .filter(({ placement }) => placement.layers.length > 0)
            .map(({ index }) => this.#clients[index]);
    const away = needed.flatMap(({ address, state }) =>
      state.kind === "ready" ? [] : [`shard ${address}: ${state.reason}`],
    );
    return away.length === 0 ? undefined : `experts without a living copy: ${away.join("; ")}`;
  }

  onLost(callback: (reason: string) => void): void {
    this.#lostCallbacks.push(callback);
  }

  async close(): Promise<void> {
    const stopped = new UnavailableError("the router is stopping");
    this.#decided.reject(stopped);
    this.#settleReady(stopped);
    await Promise.all(this.#clients.map((client) => client.close()));
  }

  #onLost(address: string, reason: string): void {
    for (const callback of this.#lostCallbacks) callback(`shard ${address} is lost: ${reason}`);
  }

  #settleReady(error?: unknown): void {
    if (error === undefined && this.unavailableReason() !== undefined) return;
    for (const waiter of this.#readyWaiters) {
      if (error === undefined) waiter.resolve();
      else waiter.reject(error);
    }
    this.#readyWaiters = [];
  }

  async #onHello(index: number, hello: ShardHello): Promise<ShardPlacement> {
    checkHellos(this.#hello, hello);
    checkTolerance(hello.conformanceTolerance);
    const { shards } = this.#options;
    const other = this.#hellos.findIndex((one, at) => at !== index && one?.rank === hello.rank);
    if (other >= 0)
      throw new HandshakeError(`rank ${hello.rank}: shard ${shards[other]} has it too`);
    const before = this.#plan?.shards.find((shard) => shard.index === index);
    if (before !== undefined && before.rank !== hello.rank) {
      throw new HandshakeError(`rank ${hello.rank}: the shard at this address had ${before.rank}`);
    }
    this.#hellos[index] = hello;
    this.#decide();
    const plan = await this.#decided.promise;
    return (plan.shards.find((shard) => shard.index === index) as PlannedShard).placement;
  }

  #decide(): void {
    const hellos = this.#hellos.filter((hello) => hello !== undefined);
    if (this.#plan !== undefined || hellos.length < this.#hellos.length) return;
    try {
      this.#plan = planCluster(this.#options, hellos);
      const { epoch, shards } = this.#plan;
      const { weights, experts } = this.#plan.formats;
      this.#options.logger.info(
        { epoch, weights, experts, shards: shards.length },
        "placement decided",
      );
      this.#decided.resolve(this.#plan);
    } catch (error) {
      this.#decided.reject(error);
    }
  }
}
