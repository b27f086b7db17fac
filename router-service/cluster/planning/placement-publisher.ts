/** Publishes placements one after the other, each when every router works by the one before. */

import type { PlacedLayers } from "../../../core/placement/planner.ts";
import type { Log } from "../../../core/platform/log.ts";
import { type Changes, waitFor } from "../changes.ts";
import type { Cluster } from "../cluster.ts";
import type { Lease } from "./lease.ts";
import type { Membership } from "../membership-static.ts";
import type { ClusterPlacement } from "./first-placement.ts";
import type { PlacementFollower } from "./placement-follower.ts";
import { isUsable } from "./placement-outlook.ts";
import type { PlacementStore, Standing } from "./placement-store.ts";
import { type SeenShard, type StageUnderway, type Upset, upsetOf } from "./stage-underway.ts";

/** What a publisher works with. */
export interface PublisherOptions {
  readonly store: PlacementStore;
  readonly lease: Lease;
  readonly membership: Membership;
  readonly cluster: Pick<Cluster, "current" | "members">;
  readonly follower: Pick<PlacementFollower, "look" | "take" | "failure">;
  /** Name of this router in the placements that it plans. */
  readonly routerId: string;
  /** Notified when a shard, a router or the lease changes. */
  readonly changes: Changes;
  /** Ends every wait. */
  readonly signal: AbortSignal;
  /** Something has changed that a new plan is due for. */
  readonly interrupted: () => boolean;
  /** Called with its epoch. */
  readonly onPublished: (epoch: number) => void;
  readonly log: Pick<Log, "info" | "warn">;
}

/** Why a placement is published, and in whose place. */
export interface PublishTerms {
  readonly why: string;
  /** What stands. */
  readonly after: Standing;
  /** Stages that follow. */
  readonly stagesLeft: number;
}

/** How a move ended: all stages are adopted; a new plan is due before; it could not go on. */
export type MoveOutcome = "done" | "interrupted" | "failed";

/** Longest loading of a stage, by this router's own word, milliseconds. */
export const ADOPT_MS = 600_000;

/** Longest wait for the other routers after this one, milliseconds. */
const OTHERS_MS = 30_000;

/** A shard that is lost in the middle of a stage may be back within this time, milliseconds. */
const RETURN_MS = 500;

/** A stage that is loaded within this time is waited for, whatever comes up but a loss, milliseconds. */
const SLOW_MS = 1_000;

/** Publishes for the router that holds the lease. */
export class PlacementPublisher {
  readonly #options: PublisherOptions;

  constructor(options: PublisherOptions) {
    this.#options = options;
  }

  /** Whether the placement stands now; false where another router has the lease or published meanwhile. Rejects where Redis is away. */
  async publish(
    { placement, weights, experts }: ClusterPlacement,
    { why, after, stagesLeft }: PublishTerms,
  ): Promise<boolean> {
    const { store, lease, routerId, follower, onPublished, log } = this.#options;
    const token = lease.token();
    if (token === undefined) return false;
    const { epoch } = placement;
    const facts = { placement, weights, experts, plannedBy: routerId, why, stagesLeft };
    const outcome = await store.publish({ ...facts, at: Date.now() }, { after, token });
    if (outcome !== "published") {
      log.info({ epoch, outcome }, "placement not published");
      return false;
    }
    log.info({ epoch, why, stagesLeft }, "placement published");
    onPublished(epoch);
    follower.look();
    return true;
  }

  /** Has this router alone work by a placement while the store is away; whether it is to. */
  #take({ placement, weights, experts }: ClusterPlacement, why: string, stagesLeft: number) {
    const { store, routerId, follower, log } = this.#options;
    if (!store.isAway()) return false;
    const facts = { placement, weights, experts, plannedBy: routerId, why, stagesLeft };
    follower.take({ ...facts, at: Date.now() });
    log.info({ epoch: placement.epoch, why, stagesLeft }, "placement taken while Redis is away");
    return true;
  }

  /**
   * Publishes the stages of a move that was planned for these shards, in the formats of what is in use. Rejects as
   * `publish`.
   */
  async publishStages(
    stages: readonly PlacedLayers[],
    inUse: ClusterPlacement,
    terms: {
      readonly why: string;
      readonly after: number;
      readonly planned: readonly SeenShard[];
      /** The store is away: the epoch of this router's own that follows another; absent: stages are published. */
      readonly epochAlone?: ((after: number) => number) | undefined;
    },
  ): Promise<MoveOutcome> {
    const { why, planned, epochAlone } = terms;
    let { after } = terms;
    for (const [index, layers] of stages.entries()) {
      const epoch = epochAlone?.(after) ?? after + 1;
      const stagesLeft = stages.length - 1 - index;
      const stage = { ...inUse, placement: { epoch, layers } };
      const before = this.#options.cluster.current() ?? inUse;
      const stands = epochAlone
        ? this.#take(stage, why, stagesLeft)
        : await this.publish(stage, { why, after, stagesLeft });
      if (!stands) return "failed";
      const underway = { epoch, inUse: before.placement.layers, stage: layers, planned };
      const adopted = await this.#adopted(underway, epochAlone !== undefined);
      if (adopted !== "done") return adopted;
      after = epoch;
      if (stagesLeft > 0 && this.#options.interrupted()) return "interrupted";
    }
    return "done";
  }

  /**
   * Waits until every router works by an epoch: this one first, then the others. "failed" where this one can not;
   * "interrupted" where its loading takes longer than what has come up can wait: requests whose experts' shards are lost
   * for a moment, shards that are to leave or have joined for SLOW_MS. Others that take too long are left behind: shards
   * keep for them what they use.
   */
  async #adopted(underway: StageUnderway, alone: boolean): Promise<MoveOutcome> {
    const { cluster, membership, follower, interrupted, changes, signal, log } = this.#options;
    const { epoch } = underway;
    const own = () => (cluster.current()?.placement.epoch ?? 0) >= epoch;
    const over = () => own() || follower.failure(epoch) !== undefined;
    const beganAt = performance.now();
    const endsAt = beganAt + ADOPT_MS;
    let upset = this.#upsetOf(underway);
    while (!over()) {
      const now = performance.now();
      const waits = upset === "bereft" ? RETURN_MS : SLOW_MS - (now - beganAt);
      const until = upset === undefined ? endsAt : Math.min(endsAt, now + waits);
      const turns = () => over() || this.#upsetOf(underway) !== upset;
      if (!(await waitFor(changes, turns, until - now, signal))) break;
      upset = this.#upsetOf(underway);
    }
    if (!own()) return upset !== undefined && !over() ? "interrupted" : "failed";
    // Others can not hear of it.
    if (alone) return "done";
    const behind = () =>
      membership.routers().filter((router) => router.epoch > 0 && router.epoch < epoch);
    const done = () => behind().length === 0 || interrupted();
    if (!(await waitFor(changes, done, OTHERS_MS, signal)) && !signal.aborted) {
      const routers = behind().map(({ id }) => id);
      log.warn({ epoch, routers }, "routers are late to adopt a placement");
    }
    return signal.aborted ? "failed" : "done";
  }

  #upsetOf(underway: StageUnderway): Upset | undefined {
    const now = Date.now();
    const members = this.#options.cluster.members().filter((member) => isUsable(member, now));
    const there = members.map(({ rank = 0, status }) => ({
      rank,
      draining: status?.draining ?? false,
    }));
    return upsetOf(underway, there);
  }
}
