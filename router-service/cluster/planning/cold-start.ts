/** The first placement of a cluster, once the shards that it waits for are there. */

import { countText } from "../../../core/amounts.ts";
import { errorMessage } from "../../../core/error-message.ts";
import { LOCAL_RANK } from "../../../core/placement/placement.ts";
import type { Log } from "../../../core/platform/log.ts";
import type { ShardHello } from "../../../proto/gen/switchyard/v1/expert.ts";
import type { Cluster } from "../cluster.ts";
import type { MemberView } from "../cluster-member.ts";
import { type Membership, sharedLocalBytes } from "../membership-static.ts";
import { type ClusterPlacement, planCluster, type PlanInput } from "./first-placement.ts";
import { isUsable } from "./placement-outlook.ts";
import type { PlacementStore } from "./placement-store.ts";

/** Shards that are named with their reasons; more are counted. */
const MAX_NAMED = 8;

/** What is waited for for longer is said in the log, and again when it is something else, milliseconds. */
const SAY_AFTER_MS = 5_000;

/** What it is made from. */
export interface FirstPlanOptions {
  readonly cluster: Pick<Cluster, "members">;
  readonly membership: Pick<Membership, "routers" | "seen" | "others">;
  readonly first: PlanInput;
  /** Shards that it waits for. */
  readonly minShards: number;
  /** Milliseconds after the first of them that it goes without the others, where it can; Infinity: never. */
  readonly patienceMs: number;
  /** Copies of each expert, as far as memory goes. */
  readonly minCopies: number;
}

/** What it came to. */
export interface FirstPlan {
  /** Undefined where there is none yet. */
  readonly placed: ClusterPlacement | undefined;
  readonly decision: string;
  /** Why there can be none; undefined where there may. */
  readonly unplaceable: string | undefined;
  /** Shards that it goes without, each with the reason; undefined where it has all. */
  readonly without: string | undefined;
}

/** When the first placement is looked for. */
export interface FirstMoment {
  /** Milliseconds since 1970. */
  readonly wallMs: number;
  /** Milliseconds that a shard has been there; 0 where none is. */
  readonly waitedMs: number;
  /** Nobody else hears of it: routers that list the same shards come to the same only with all of them. */
  readonly alone: boolean;
}

/** The first placement as it is now, on the shards that can be used; on the routers' own devices only where those lack room. */
export function planFirst(options: FirstPlanOptions, moment: FirstMoment): FirstPlan {
  const { cluster, membership, first, minShards, patienceMs, minCopies } = options;
  const { wallMs, waitedMs, alone } = moment;
  const members = cluster.members();
  const hellos = offersOf(members, wallMs);
  const others = hellos.length < minShards ? namesOf(members, wallMs) : undefined;
  const isOver = hellos.length > 0 && waitedMs >= patienceMs && !alone;
  if (hellos.length < minShards && !isOver) {
    // A list of shards is never empty.
    if (members.every(({ rank }) => rank === LOCAL_RANK)) return notYet(nobodyText(membership));
    const there = `${hellos.length} of ${countText(minShards, "shard")} can be used`;
    return notYet(others === undefined ? there : `${there}; ${others}`);
  }
  const local = members.find(({ rank }) => rank === LOCAL_RANK)?.hello;
  const memoryBytes = sharedLocalBytes(membership);
  const spare = local && memoryBytes > 0 ? { ...local, memoryBytes } : undefined;
  try {
    const placed = planCluster(first, hellos, { spare, minCopies });
    const on = `the first placement, on ${countText(hellos.length, "shard")}`;
    const decision = others === undefined ? on : `${on}; without ${others}`;
    return { placed, decision, unplaceable: undefined, without: others };
  } catch (error) {
    const why = errorMessage(error);
    const reason = others === undefined ? why : `${why}; ${others}`;
    return { ...notYet(reason), unplaceable: reason };
  }
}

/** What a cold start works with. */
export interface ColdStartOptions extends FirstPlanOptions {
  readonly cluster: Pick<Cluster, "members" | "setUndecided">;
  readonly store: Pick<PlacementStore, "isAway">;
  readonly log: Pick<Log, "warn">;
}

/** Waits for the first placement, and says what for. */
export class ColdStart {
  readonly #options: ColdStartOptions;
  /** Since when a shard is there; undefined: none is. */
  #since: number | undefined;
  #startedAt: number | undefined;
  #said = "";
  #saidWithout: string | undefined;

  constructor(options: ColdStartOptions) {
    this.#options = options;
  }

  /**
   * The first placement where it can be made now, by a router that leads, or works by itself alone; another one waits.
   * @param nowMs milliseconds of any clock that only goes forward
   * @param wallMs milliseconds since 1970
   */
  look(role: "leads" | "alone" | "waits", nowMs: number, wallMs: number): FirstPlan {
    const { cluster, store, log } = this.#options;
    this.#startedAt ??= nowMs;
    const isAny = offersOf(cluster.members(), wallMs).length > 0;
    this.#since = isAny ? (this.#since ?? nowMs) : undefined;
    const waitedMs = nowMs - (this.#since ?? nowMs);
    const plan = planFirst(this.#options, { wallMs, waitedMs, alone: role === "alone" });
    const another = store.isAway() ? "Redis does not answer" : "another router is to decide it";
    const waits = notYet(plan.placed === undefined ? plan.decision : another);
    const found = role === "waits" ? waits : plan;
    const { placed, decision, unplaceable, without } = found;
    cluster.setUndecided(decision);
    if (without !== undefined && without !== this.#saidWithout) {
      log.warn({ without }, "not all shards are waited for");
    }
    this.#saidWithout = without;
    const isTime = unplaceable !== undefined || nowMs - this.#startedAt >= SAY_AFTER_MS;
    if (placed === undefined && isTime && decision !== this.#said) {
      log.warn({ reason: decision }, "no first placement");
      this.#said = decision;
    }
    return found;
  }
}

function notYet(decision: string): FirstPlan {
  return { placed: undefined, decision, unplaceable: undefined, without: undefined };
}

/** That no shard is registered, and what is instead. */
function nobodyText(membership: FirstPlanOptions["membership"]): string {
  if (!membership.seen()) return "Redis does not answer";
  const none = "no shard of this model is registered in Redis";
  const found = membership.others?.() ?? [];
  if (found.length === 0) return none;
  const each = found.map(
    ({ modelHash, numShards }) => `${countText(numShards, "shard")} of the model ${modelHash}`,
  );
  return `${none}, but ${each.join(", ")}`;
}

/** Hellos of the shards that experts can be placed on first. */
function offersOf(members: readonly MemberView[], wallMs: number): ShardHello[] {
  return members.flatMap((member) => {
    const { rank, hello } = member;
    if (hello === undefined || rank === LOCAL_RANK) return [];
    return reasonAgainst(member, wallMs) === undefined ? [hello] : [];
  });
}

/** Why nothing can be placed on a shard first; undefined where it can. */
function reasonAgainst(member: MemberView, wallMs: number): string | undefined {
  if (member.status?.draining === true) return "it is to leave";
  if (isUsable(member, wallMs)) return undefined;
  return member.reason ?? "it is in quarantine";
}

/** The shards that can not be used, with their reasons; undefined where all can. */
function namesOf(members: readonly MemberView[], wallMs: number): string | undefined {
  const named = members.flatMap((member) => {
    const reason = reasonAgainst(member, wallMs);
    return reason === undefined ? [] : [`shard ${member.address}: ${reason}`];
  });
  if (named.length === 0) return undefined;
  const more = named.length - MAX_NAMED;
  const rest = more > 0 ? [`and ${more} more`] : [];
  return [...named.slice(0, MAX_NAMED), ...rest].join("; ");
}
