/** Whether a plan is worth its moves, and why; pure. */

import type { PlacedLayers, Plan } from "../../core/placement/planner.ts";
import type { Policy } from "../../core/placement/policies.ts";
import type { ShardFacts } from "./planner-input.ts";

/** Part of a step's time that a plan has to save beside the cost of its moves. */
export const MARGIN = 0.05;

/** What a placement lacks on the shards that are there. */
export interface Need {
  /** Ranks that hold copies and are not there, ascending. */
  readonly lost: readonly number[];
  /** Ranks that hold copies and are to leave, ascending. */
  readonly draining: readonly number[];
  /** Experts, over all layers, without a copy on a shard that is there and stays. */
  readonly homeless: number;
  /** Experts, over all layers, with fewer such copies than are asked for. */
  readonly sparse: number;
}

/** What was decided. */
export interface Decision {
  readonly publish: boolean;
  /** The plan saves more than its moves and the margin, and nothing else asks for it: it is published if that lasts. */
  readonly pending?: boolean;
  /** For people, and for the placement that is published. */
  readonly why: string;
}

/** What a placement lacks. */
export function needOf(
  layers: PlacedLayers,
  shards: readonly Pick<ShardFacts, "rank" | "draining">[],
  minCopies: number,
): Need {
  const byRank = new Map(shards.map((shard) => [shard.rank, shard]));
  const lost = new Set<number>();
  const draining = new Set<number>();
  let homeless = 0;
  let sparse = 0;
  for (const replicas of layers.values()) {
    for (const copies of replicas) {
      let homes = 0;
      for (const { rank } of copies) {
        const shard = byRank.get(rank);
        if (shard === undefined) lost.add(rank);
        else if (shard.draining) draining.add(rank);
        else homes++;
      }
      if (homes === 0) homeless++;
      if (homes < minCopies) sparse++;
    }
  }
  return { lost: ascending(lost), draining: ascending(draining), homeless, sparse };
}

/** Whether something has to move whatever it costs. */
export function isUrgent({ homeless, draining }: Need): boolean {
  return homeless > 0 || draining.length > 0;
}

/** What else a decision needs. */
export interface DecisionTerms {
  /** Any but `auto` is followed whatever it brings; absent: auto. */
  readonly policy?: Policy | undefined;
  /** Part of a step's time that a plan has to save beside the cost of its moves. */
  readonly margin: number;
  /** Experts that will have fewer copies than are asked for. */
  readonly sparseAfter: number;
  /** What a plan saves was seen before, or comes of a change (isConfirmed); absent: true. */
  readonly confirmed?: boolean;
}

/** When the planner looked, at what, and what it came to. */
export interface Look {
  readonly atMs: number;
  readonly epoch: number;
  readonly shards: readonly Pick<ShardFacts, "rank" | "memoryBytes" | "draining">[];
  /** Since when every look at this has found a plan worth its moves; undefined: it did not. */
  readonly worthSinceMs: number | undefined;
}

/**
 * True where what a plan saves is no chance: shards have come, gone or changed since the last look, or every look for
 * `leastMs` milliseconds has found as much. Measured speeds and loads wander; a plan that one look finds may be made of that.
 */
export function isConfirmed(
  last: Look | undefined,
  now: Omit<Look, "worthSinceMs">,
  leastMs: number,
): boolean {
  if (last === undefined) return false;
  if (!sameShards(last.shards, now.shards)) return true;
  const { epoch, worthSinceMs } = last;
  return epoch === now.epoch && worthSinceMs !== undefined && now.atMs - worthSinceMs >= leastMs;
}

/** The look to remember: `pending` where it found a plan that is worth its moves and waits. */
export function nextLook(
  last: Look | undefined,
  now: Omit<Look, "worthSinceMs">,
  pending: boolean,
): Look {
  const same = last?.epoch === now.epoch && sameShards(last.shards, now.shards);
  const worthSinceMs = pending ? ((same ? last.worthSinceMs : undefined) ?? now.atMs) : undefined;
  return { ...now, worthSinceMs };
}

function sameShards(one: Look["shards"], other: Look["shards"]): boolean {
  const facts = new Map(one.map((shard) => [shard.rank, shard]));
  return (
    one.length === other.length &&
    other.every(({ rank, memoryBytes, draining }) => {
      const before = facts.get(rank);
      return before?.memoryBytes === memoryBytes && before.draining === draining;
    })
  );
}

/**
 * A plan is published where experts lack a living copy, a shard is to leave, or fewer experts lack copies than before
 * (`sparseAfter` do then), else where the time that it saves per step is more than its loading and `margin` of the
 * step's time, and that is `confirmed` or shards with copies are gone.
 */
export function decide(
  { stages, moves, why }: Plan,
  need: Need,
  { policy = "auto", margin, sparseAfter, confirmed = true }: DecisionTerms,
): Decision {
  const { secondsBefore, secondsAfter, moveSecondsPerStep } = why;
  const loads = moves.filter(({ kind }) => kind === "load").length;
  const effect =
    secondsBefore === undefined
      ? `a step is expected to take ${milliseconds(secondsAfter)}`
      : `a step is expected to take ${milliseconds(secondsAfter)} instead of ${milliseconds(secondsBefore)}`;
  const cost = loads === 0 ? "nothing is loaded" : `${loads} experts are loaded`;
  if (stages.length === 0) {
    const stuck = isUrgent(need)
      ? `${needText(need)}, and nothing can move`
      : "no better placement";
    return { publish: false, why: stuck };
  }
  if (isUrgent(need)) return { publish: true, why: `${needText(need)}; ${cost}; ${effect}` };
  if (policy !== "auto") {
    return { publish: true, why: `--placement-policy ${policy}; ${cost}; ${effect}` };
  }
  if (sparseAfter < need.sparse) {
    const lacking = `${need.sparse} experts have fewer copies than are asked for`;
    return { publish: true, why: `${lacking}, ${sparseAfter} will; ${cost}; ${effect}` };
  }
  const gain = (secondsBefore ?? secondsAfter) - secondsAfter;
  const worth = gain > moveSecondsPerStep + margin * (secondsBefore ?? 0);
  const lost = need.lost.length === 0 ? "" : `${needText(need)}; `;
  if (worth && !confirmed && need.lost.length === 0) {
    return {
      publish: false,
      pending: true,
      why: `${effect}; ${cost}; if the next look says so too`,
    };
  }
  return worth
    ? { publish: true, why: `${lost}${effect}; ${cost}` }
    : {
        publish: false,
        why: `${lost}a better placement would save ${milliseconds(gain)} of ${milliseconds(secondsBefore ?? secondsAfter)} per step, which is not worth its moves`,
      };
}

function needText({ lost, draining, homeless }: Need): string {
  const parts = [
    ...(lost.length === 0 ? [] : [`${ranksText(lost)} gone`]),
    ...(draining.length === 0 ? [] : [`${ranksText(draining)} to leave`]),
    ...(homeless === 0 ? [] : [`${homeless} experts have no copy elsewhere`]),
  ];
  return parts.join(", ");
}

function ranksText(ranks: readonly number[]): string {
  return ranks.length === 1 ? `shard ${ranks[0]} is` : `shards ${ranks.join(", ")} are`;
}

function milliseconds(seconds: number): string {
  return `${(seconds * 1000).toPrecision(3)} ms`;
}

function ascending(ranks: ReadonlySet<number>): number[] {
  return [...ranks].sort((a, b) => a - b);
}
