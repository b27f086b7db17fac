/** Plans placements, in the one router that holds the lease: forecast, plan, stages, each adopted by all before the next. */

import { errorMessage } from "../../../core/error-message.ts";
import { PlacementError, PlannerInputError } from "../../../core/placement/errors.ts";
import type { Plan } from "../../../core/placement/planner.ts";
import type { Logger } from "../../../core/platform/log.ts";
import { RedisUnavailableError } from "../../../core/platform/redis.ts";
import { imbalanceOf } from "./assessment.ts";
import { AwayShards } from "./away-shards.ts";
import { Changes, waitFor } from "../changes.ts";
import type { Cluster, ClusterChange } from "../cluster.ts";
import { ColdStart, type FirstPlanOptions } from "./cold-start.ts";
import { sharedLocalBytes } from "../membership-static.ts";
import type { ClusterPlacement } from "./first-placement.ts";
import { bytesIn } from "./held-bytes.ts";
import { isUrgent, judge, type Look, needOf } from "./plan-decision.ts";
import type { PlacementOutlook } from "./placement-outlook.ts";
import type { PlacementFollower } from "./placement-follower.ts";
import { ADOPT_MS, PlacementPublisher, type PublisherOptions } from "./placement-publisher.ts";
import type { PlanFacts } from "./planner-input.ts";
import { newestEpoch, Outage } from "./outage.ts";
import { findPlacement, type FoundPlacement } from "./placement-store.ts";
import { NOTHING_PLANNED, type PlannerState } from "./planner-state.ts";
import type { PlannerThread } from "./planner-thread.ts";
import { planFrom, type StageUnderway, underwayOf, upsetOf } from "./stage-underway.ts";
import type { StoredPlacement } from "./stored-placement.ts";

/** What the loop works with. */
export interface PlannerLoopOptions
  extends
    Omit<PublisherOptions, "changes" | "signal" | "onPublished" | "interrupted">,
    Pick<FirstPlanOptions, "first" | "minShards" | "patienceMs" | "minCopies"> {
  readonly cluster: Pick<Cluster, "members" | "current" | "adopt" | "onChange" | "setUndecided">;
  readonly follower: Pick<
    PlacementFollower,
    "look" | "take" | "failure" | "stored" | "newest" | "takeUnplaceable"
  >;
  readonly outlook: PlacementOutlook;
  readonly thread: PlannerThread;
  /** The store does not answer, and there is no need to wait for it. */
  readonly mayStartAlone: () => boolean;
  /** Seconds between two plans; 0: only where something has to move. */
  readonly intervalSeconds: number;
  readonly log: Pick<Logger, "info" | "warn" | "debug">;
}

/** From a change to the plan for it, so that changes that come together are planned for once, milliseconds. */
const SETTLE_MS = 100;

/** A shard that is gone may be back within this time, milliseconds. */
const GRACE_MS = 500;

/** Pause after a failure, milliseconds. */
const RETRY_MS = 1_000;

/** A router that knows what a Redis has lost registers within this time, milliseconds. */
const RECALL_MS = 6_000;

/** Time that what a plan saves must be seen, in intervals: three looks, however many others come between. */
const CONFIRMING_INTERVALS = 1.5;

/** The planner of one router. */
export class PlannerLoop {
  readonly #options: PlannerLoopOptions;
  readonly #stop = new AbortController();
  readonly #startedAt = performance.now();
  readonly #away = new AwayShards();
  readonly #running: Promise<void>;
  #state = NOTHING_PLANNED;
  readonly #changes = new Changes();
  readonly #publisher: PlacementPublisher;
  readonly #coldStart: ColdStart;
  /** What the store was told last of what can not be placed; null before. */
  #told: string | undefined | null = null;
  /** Why planning failed last: one that goes on failing would fill the log. */
  #failure: string | undefined;
  readonly #outage = new Outage(Math.random);
  /** The newest epoch that the store was seen to hold. */
  #storeEpoch = 0;
  /** What the store held last that can not be read. */
  #unreadable: string | undefined;
  /** The last look that made a plan; undefined before the first. */
  #lastLook: Look | undefined;
  /** Something has changed for which a plan is due at once. */
  #due = true;

  constructor(options: PlannerLoopOptions) {
    this.#options = options;
    this.#coldStart = new ColdStart(options);
    this.#publisher = new PlacementPublisher({
      ...options,
      changes: this.#changes,
      signal: this.#stop.signal,
      interrupted: () => this.#due,
      onPublished: (epoch) => {
        this.#storeEpoch = epoch;
        this.#state = { ...this.#state, published: this.#state.published + 1 };
      },
    });
    options.cluster.onChange((change) => this.#onChange(change));
    let localBytes = sharedLocalBytes(options.membership);
    options.membership.onChange(() => {
      const before = localBytes;
      localBytes = sharedLocalBytes(options.membership);
      if (localBytes !== before || this.#isBehind()) this.wake();
      else this.#changes.notify();
    });
    options.lease.onLeading(() => {
      // Another router may have told it something else meanwhile.
      this.#told = null;
      this.wake();
    });
    this.#running = this.#run();
  }

  state(): PlannerState {
    const { lease, cluster, store } = this.#options;
    const epoch = cluster.current()?.placement.epoch ?? 0;
    const leading = lease.token() !== undefined;
    return { ...this.#state, leading, redisAway: store.isAway(), epoch };
  }

  /** Has the loop plan now. */
  wake(): void {
    this.#due = true;
    this.#changes.notify();
  }

  async close(): Promise<void> {
    this.#stop.abort();
    this.#changes.notify();
    await this.#running;
  }

  #onChange({ kind }: ClusterChange): void {
    if (kind === "adopted" || kind === "placed") this.#changes.notify();
    else this.wake();
  }

  /** A router works by what it planned while the store was away. */
  #isBehind(): boolean {
    const { store, membership } = this.#options;
    return !store.isAway() && membership.routers().some(({ epoch }) => epoch > this.#storeEpoch);
  }

  async #run(): Promise<void> {
    const { intervalSeconds, log } = this.#options;
    const everyMs = intervalSeconds === 0 ? 10_000 : intervalSeconds * 1000;
    while (!this.#stop.signal.aborted) {
      let nextMs = everyMs;
      this.#due = false;
      try {
        nextMs = (await this.#look()) ?? everyMs;
        await this.#tellUnplaceable();
        this.#failure = undefined;
      } catch (error) {
        if (this.#stop.signal.aborted) return;
        const reason = errorMessage(error);
        if (!(error instanceof RedisUnavailableError) && this.#failure !== reason) {
          log.warn({ err: error }, "planning failed");
          this.#failure = reason;
        }
        nextMs = RETRY_MS;
      }
      const { signal } = this.#stop;
      await waitFor(this.#changes, () => this.#due, nextMs, signal);
      if (this.#due) await waitFor(this.#changes, () => false, SETTLE_MS, signal);
    }
  }

  /** Has all routers refuse requests that wait for what nobody has room for. */
  async #tellUnplaceable(): Promise<void> {
    const { lease, store, follower } = this.#options;
    const { unplaceable } = this.#state;
    const token = lease.token();
    if (token === undefined || unplaceable === this.#told || store.isAway()) return;
    await store.setUnplaceable(unplaceable, token);
    this.#told = unplaceable;
    follower.look();
  }

  /** One look at things: plans and publishes where it is due. Milliseconds until the next one, where that is soon. */
  async #look(): Promise<number | undefined> {
    const { store, cluster, lease, log } = this.#options;
    const inUse = cluster.current();
    if (inUse !== undefined && store.isAway()) return this.#lookAlone(inUse);
    this.#outage.end();
    if (lease.token() === undefined) return inUse === undefined ? this.#startAlone() : RETRY_MS;
    const found = await findPlacement(store);
    const { stored, unreadable } = found;
    this.#storeEpoch = found.epoch;
    if (unreadable !== undefined && unreadable !== this.#unreadable) {
      log.warn({ reason: unreadable }, "a new placement replaces one that can not be read");
    }
    this.#unreadable = unreadable;
    if (inUse === undefined) return stored === undefined ? this.#planFirst(found) : SETTLE_MS;
    const newest = newestEpoch(found, this.#options);
    if (stored === undefined || found.epoch < newest) {
      return this.#recall(found, inUse, newest);
    }
    return this.#replan(stored, inUse);
  }

  /** While the store is away: what can not wait is planned for this router alone. Milliseconds until the next look. */
  async #lookAlone(inUse: ClusterPlacement): Promise<number> {
    const { follower } = this.#options;
    const unknown = { plannedBy: "", why: "", at: 0, stagesLeft: 0 };
    const stored = follower.newest() ?? { ...inUse, ...unknown };
    const { epoch } = stored.placement;
    const after = newestEpoch({ stored: undefined, epoch }, this.#options);
    return (await this.#replan(stored, inUse, after)) ?? RETRY_MS;
  }

  /** Puts back what the routers work by and Redis has lost, under an epoch that is new to all where another may know it. */
  async #recall(
    { stored, after, unreadable }: FoundPlacement,
    inUse: ClusterPlacement,
    newest: number,
  ): Promise<number> {
    const isNewest = inUse.placement.epoch === newest && unreadable === undefined;
    const epoch = isNewest ? newest : newest + 1;
    const early = "planned before Redis knew of it";
    const lost = stored === undefined ? early : "Redis lost what routers know";
    const own = this.#outage.gave(inUse.placement.epoch) && this.#options.follower.stored()?.why;
    const why = unreadable ?? (own || lost);
    const placement = { ...inUse.placement, epoch };
    const published = await this.#publisher.publish(
      { ...inUse, placement },
      { why, after, stagesLeft: 0 },
    );
    return published ? SETTLE_MS : RETRY_MS;
  }

  async #planFirst(found: FoundPlacement): Promise<number | undefined> {
    const newest = newestEpoch(found, this.#options);
    // Shards hold placements that a router knows: it is to put them back.
    if (newest > 0 && performance.now() - this.#startedAt < RECALL_MS) return RETRY_MS;
    const planned = this.#firstPlacement("leads");
    if (planned === undefined) return RETRY_MS;
    const placement = { ...planned.placement, epoch: newest + 1 };
    const terms = { why: this.#state.decision, after: found.after, stagesLeft: 0 };
    await this.#publisher.publish({ ...planned, placement }, terms);
    return undefined;
  }

  /** Works by the first placement without telling anybody, once it may: all routers of a list come to the same. */
  async #startAlone(): Promise<number> {
    const planned = this.#firstPlacement(this.#options.mayStartAlone() ? "alone" : "waits");
    if (planned !== undefined) await this.#options.cluster.adopt(planned, this.#stop.signal);
    return RETRY_MS;
  }

  /** The first placement, where it can be made now. */
  #firstPlacement(role: "leads" | "alone" | "waits"): ClusterPlacement | undefined {
    const { placed, decision, unplaceable } = this.#coldStart.look(
      role,
      performance.now(),
      Date.now(),
    );
    this.#decided(decision, unplaceable);
    return placed;
  }

  /** `aloneAfter` is given while the store is away: the newest epoch that is known of. */
  async #replan(
    stored: StoredPlacement,
    inUse: ClusterPlacement,
    aloneAfter?: number,
  ): Promise<number | undefined> {
    const { outlook, follower, lease, routerId, log, intervalSeconds } = this.#options;
    const facts = await outlook.facts(inUse);
    const bytesOf = bytesIn(facts);
    const need = needOf(inUse.placement.layers, facts.shards, facts.minCopies, bytesOf);
    const now = performance.now();
    this.#away.note(need.lost, now);
    const soonMs = this.#away.graceLeft(GRACE_MS, now);
    if (soonMs > 0) return soonMs;
    if (aloneAfter !== undefined) {
      const waitMs = this.#outage.waitMs(isUrgent(need), lease.ledLast(), now);
      if (waitMs === undefined) follower.takeUnplaceable(undefined);
      if (waitMs !== 0) return waitMs;
    }
    // A look from before another router planned says nothing of what that one saw.
    const planned = stored.plannedBy === routerId ? this.#lastLook?.shards : undefined;
    const underway = underwayOf(stored.placement, inUse.placement, planned);
    if (underway !== undefined && upsetOf(underway, facts.shards) === undefined) {
      const isStuck = follower.failure(underway.epoch) !== undefined;
      if (!isStuck && Date.now() - stored.at < ADOPT_MS) return RETRY_MS;
    }
    const isDue = isUrgent(need) || need.copiesLacking > 0 || underway !== undefined;
    if (intervalSeconds === 0 && !isDue) {
      if (this.#state.unplaceable !== undefined) this.#decided("every expert has its copies again");
      return undefined;
    }
    const plan = await this.#plan(facts, underway);
    const unplaceable = plan === undefined ? this.#state.unplaceable : undefined;
    if (aloneAfter !== undefined) follower.takeUnplaceable(unplaceable);
    if (plan === undefined) return RETRY_MS;
    const { decision, look } = judge({
      plan,
      current: inUse.placement,
      underway: underway?.stage,
      facts,
      bytesOf,
      last: this.#lastLook,
      atMs: performance.now(),
      leastMs: intervalSeconds * 1000 * CONFIRMING_INTERVALS,
    });
    const { publish, why } = decision;
    this.#lastLook = look;
    const { secondsBefore, secondsAfter, shards } = plan.why;
    this.#state = {
      ...this.#state,
      kept: this.#state.kept + (publish ? 0 : 1),
      stepSeconds: publish ? secondsAfter : (secondsBefore ?? secondsAfter),
      imbalance: imbalanceOf(shards.map(({ seconds }) => seconds)),
    };
    this.#decided(why);
    log.debug({ publish, why }, "planned");
    if (!publish) return undefined;
    // Requests need not be refused until all is loaded.
    await this.#tellUnplaceable();
    const epochAlone = (after: number) => this.#outage.epochAfter(after);
    const after = aloneAfter ?? stored.placement.epoch;
    const shared = { why, after, planned: facts.shards };
    const alone = { ...shared, why: `${why}; while Redis was away`, epochAlone };
    const terms = aloneAfter === undefined ? shared : alone;
    const outcome = await this.#publisher.publishStages(plan.stages, inUse, terms);
    return { done: undefined, interrupted: SETTLE_MS, failed: RETRY_MS }[outcome];
  }

  /** Undefined where there can be none, which is decided then. */
  async #plan(facts: PlanFacts, underway: StageUnderway | undefined): Promise<Plan | undefined> {
    const { thread, log, cluster } = this.#options;
    try {
      return await planFrom(facts, underway, cluster.members(), thread);
    } catch (error) {
      const isRoom = error instanceof PlacementError;
      if (!isRoom && !(error instanceof PlannerInputError)) throw error;
      if (this.#state.decision !== error.message) {
        const said = isRoom ? "experts can not be placed" : "the planner can not use its input";
        log.warn({ reason: error.message }, said);
      }
      this.#decided(error.message, isRoom ? error.message : undefined);
      return undefined;
    }
  }

  #decided(decision: string, unplaceable?: string): void {
    this.#state = { ...this.#state, decision, unplaceable };
  }
}
