/** Whether a plan is worth its moves, and why; pure. */

import { countText, secondsText } from "../../../core/amounts.ts";
import { type Placement, rankName } from "../../../core/placement/placement.ts";
import type { PlacedLayers, Plan } from "../../../core/placement/planner.ts";
import type { Policy } from "../../../core/placement/input.ts";
import type { BytesOf } from "./held-bytes.ts";
import type { PlanFacts, ShardFacts } from "./planner-input.ts";

/** Part of a step's time that a plan has to save beside the cost of its moves. */
export const MARGIN = 0.05;

/**
 * Deviations of what a plan saves that it has to save beside that. Plans pick what looks best, by chance as well: with 1, shards
 * of one speed whose measured times wander by a fifth got a new placement every 50 minutes, with 1.5 none in 200.
 */
const DOUBTED_DEVIATIONS = 1.5;

/** A plan that saves so many times what it must is no chance for long, and need be seen for a third of the time only. */
const CLEAR = 2;

/** What a placement lacks on the shards that are there. */
export interface Need {
  /** Ranks that hold copies and are not there, ascending. */
  readonly lost: readonly number[];
  /** Ranks that hold copies and are to leave, ascending. */
  readonly draining: readonly number[];
  /** Ranks that stay and have less memory than they hold, ascending. */
  readonly crowded: readonly number[];
  /** Experts, over all layers, without a copy on a shard that is there and stays. */
  readonly homeless: number;
  /** Such copies, over all experts, that there are fewer than are asked for. */
  readonly copiesLacking: number;
}

/** What was decided. */
export interface Decision {
  readonly publish: boolean;
  /** The plan saves more than its moves and the margin, and nothing else asks for it: it is published if that lasts. */
  readonly pending?: boolean;
  /** For people, and for the placement that is published. */
  readonly why: string;
}

/** What a placement lacks, in memory where `bytesOf` says what each expert takes. */
export function needOf(
  layers: PlacedLayers,
  shards: readonly (Pick<ShardFacts, "rank" | "draining"> &
    Partial<Pick<ShardFacts, "memoryBytes">>)[],
  minCopies: number,
  bytesOf: BytesOf = () => 0,
): Need {
  const byRank = new Map(shards.map((shard) => [shard.rank, shard]));
  const lost = new Set<number>();
  const draining = new Set<number>();
  const held = new Map<number, number>();
  let homeless = 0;
  let copiesLacking = 0;
  for (const [layer, replicas] of layers) {
    for (const [expert, copies] of replicas.entries()) {
      const bytes = bytesOf(layer, expert);
      let homes = 0;
      for (const { rank } of copies) {
        const shard = byRank.get(rank);
        if (shard === undefined) lost.add(rank);
        else if (shard.draining) draining.add(rank);
        else {
          held.set(rank, (held.get(rank) ?? 0) + bytes);
          homes++;
        }
      }
      if (homes === 0) homeless++;
      copiesLacking += Math.max(0, minCopies - homes);
    }
  }
  const crowded = new Set<number>();
  for (const [rank, bytes] of held) {
    if (bytes > (byRank.get(rank)?.memoryBytes ?? Infinity)) crowded.add(rank);
  }
  return {
    lost: ascending(lost),
    draining: ascending(draining),
    crowded: ascending(crowded),
    homeless,
    copiesLacking,
  };
}

/** What one or the other of two placements lacks. */
function eitherNeed(one: Need, other: Need): Need {
  return {
    lost: ascending(new Set([...one.lost, ...other.lost])),
    draining: ascending(new Set([...one.draining, ...other.draining])),
    crowded: ascending(new Set([...one.crowded, ...other.crowded])),
    homeless: Math.max(one.homeless, other.homeless),
    copiesLacking: Math.max(one.copiesLacking, other.copiesLacking),
  };
}

/** Whether something has to move whatever it costs. */
export function isUrgent({ homeless, draining, crowded }: Need): boolean {
  return homeless > 0 || draining.length > 0 || crowded.length > 0;
}

/** Whether shards have come, gone or changed since their placement was first looked at. */
function haveChanged(last: Look | undefined, { epoch, shards }: NewLook): boolean {
  return last?.epoch === epoch && !sameShards(last.shardsAtFirst, shards);
}

/** What else a decision needs. */
export interface DecisionTerms {
  /** Any but `auto` is followed whatever it brings; absent: auto. */
  readonly policy?: Policy | undefined;
  /** Part of a step's time that a plan has to save beside the cost of its moves. */
  readonly margin: number;
  /** What a plan saves comes of shards that have come, gone or changed: measured speeds can not deceive about it; absent: false. */
  readonly changed?: boolean;
  /** The copies of those that are asked for that will be lacking. */
  readonly copiesLackingAfter: number;
  /** What a plan saves was seen before, or comes of a change (isConfirmed); absent: true. */
  readonly confirmed?: boolean;
  /** The same of what it saves where that is CLEAR times what it must be; absent: as `confirmed`. */
  readonly confirmedIfClear?: boolean;
}

/** When the planner looked, at what, and what it came to. */
export interface Look {
  readonly atMs: number;
  readonly epoch: number;
  readonly shards: readonly Pick<ShardFacts, "rank" | "memoryBytes" | "draining">[];
  /** The same when its epoch was first looked at. */
  readonly shardsAtFirst: Look["shards"];
  /** Since when every look at this has found a plan worth its moves; undefined: it did not. */
  readonly worthSinceMs: number | undefined;
}

/** A look before it has come to anything. */
export type NewLook = Pick<Look, "atMs" | "epoch" | "shards">;

/**
 * True where what a plan saves is no chance: shards have come, gone or changed since the last look, or every look for
 * `leastMs` milliseconds has found as much. Measured speeds and loads wander; a plan that one look finds may be made of that.
 */
export function isConfirmed(last: Look | undefined, now: NewLook, leastMs: number): boolean {
  if (last === undefined) return false;
  if (!sameShards(last.shards, now.shards)) return true;
  const { epoch, worthSinceMs } = last;
  return epoch === now.epoch && worthSinceMs !== undefined && now.atMs - worthSinceMs >= leastMs;
}

/** The look to remember: `pending` where it found a plan that is worth its moves and waits. */
export function nextLook(last: Look | undefined, now: NewLook, pending: boolean): Look {
  const same = last?.epoch === now.epoch && sameShards(last.shards, now.shards);
  const worthSinceMs = pending ? ((same ? last.worthSinceMs : undefined) ?? now.atMs) : undefined;
  const shardsAtFirst = last?.epoch === now.epoch ? last.shardsAtFirst : now.shards;
  return { ...now, shardsAtFirst, worthSinceMs };
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

/** A plan, what it is to replace, and what was looked at before. */
export interface PlanAtHand {
  readonly plan: Plan;
  readonly current: Placement;
  /** A stage that is being loaded, in whose place it comes; absent: none is. */
  readonly underway?: PlacedLayers | undefined;
  /** What it was made from. */
  readonly facts: Pick<PlanFacts, "shards" | "minCopies" | "policy">;
  /** Device memory of each expert, bytes. */
  readonly bytesOf: BytesOf;
  /** The last look that made a plan; undefined before the first. */
  readonly last: Look | undefined;
  /** Time of this look, milliseconds of any clock that only goes forward. */
  readonly atMs: number;
  /** Milliseconds for which what a plan saves must be seen. */
  readonly leastMs: number;
}

/** What becomes of a plan, and the look to remember. */
export function judge({
  plan,
  current,
  underway,
  facts,
  bytesOf,
  last,
  atMs,
  leastMs,
}: PlanAtHand): {
  readonly decision: Decision;
  readonly look: Look;
} {
  const { shards, minCopies, policy } = facts;
  const { epoch, layers } = current;
  const now = { atMs, epoch, shards };
  const own = needOf(layers, shards, minCopies, bytesOf);
  const need = underway ? eitherNeed(own, needOf(underway, shards, minCopies, bytesOf)) : own;
  const decision = decide(plan, need, {
    policy,
    margin: MARGIN,
    changed: haveChanged(last, now),
    copiesLackingAfter: needOf(plan.stages.at(-1) ?? layers, shards, minCopies).copiesLacking,
    confirmed: isConfirmed(last, now, leastMs),
    confirmedIfClear: isConfirmed(last, now, leastMs / 3),
  });
  return { decision, look: nextLook(last, now, decision.pending ?? false) };
}

/**
 * A plan is published where experts lack a living copy, a shard is to leave or has less memory than it holds, or fewer copies are lacking than before
 * (`copiesLackingAfter` are then), else where the time that it saves per step is more than its loading, `margin` of the step's
 * time and what that may be off by (unless shards have `changed`), and that is `confirmed` or shards with copies are gone.
 */
export function decide({ stages, moves, why }: Plan, need: Need, terms: DecisionTerms): Decision {
  const { policy = "auto", margin, changed = false, copiesLackingAfter, confirmed = true } = terms;
  const { secondsBefore, secondsAfter, moveSecondsPerStep, savingDeviation } = why;
  const loads = moves.filter(({ kind }) => kind === "load").length;
  const effect =
    secondsBefore === undefined
      ? `a step is expected to take ${secondsText(secondsAfter)}`
      : `a step is expected to take ${secondsText(secondsAfter)} instead of ${secondsText(secondsBefore)}`;
  const cost =
    loads === 0 ? "nothing is loaded" : `${countText(loads, "expert is", "experts are")} loaded`;
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
  if (copiesLackingAfter < need.copiesLacking) {
    const lacking = `${countText(need.copiesLacking, "copy is", "copies are")} lacking of those that are asked for`;
    return { publish: true, why: `${lacking}, then ${copiesLackingAfter}; ${cost}; ${effect}` };
  }
  const before = secondsBefore ?? secondsAfter;
  const gain = before - secondsAfter;
  const price = moveSecondsPerStep + margin * before;
  const doubt = changed ? 0 : DOUBTED_DEVIATIONS * savingDeviation;
  const worth = gain > price + doubt;
  const isClear = gain > CLEAR * (price + doubt);
  const isSure = isClear ? (terms.confirmedIfClear ?? confirmed) : confirmed;
  const lost = need.lost.length === 0 ? "" : `${needText(need)}; `;
  if (worth && !isSure && need.lost.length === 0) {
    return {
      publish: false,
      pending: true,
      why: `${effect}; ${cost}; if the next looks say so too`,
    };
  }
  if (worth) return { publish: true, why: `${lost}${effect}; ${cost}` };
  if (gain <= 0) return { publish: false, why: `${lost}no better placement` };
  const parts = [
    ...(moveSecondsPerStep > 0 ? [`${secondsText(moveSecondsPerStep)} for its loads`] : []),
    `${100 * margin} % of a step`,
    ...(doubt > 0 ? [`${secondsText(doubt)} as measured speeds vary`] : []),
  ];
  const saving = `a better placement would save ${secondsText(gain)} of ${secondsText(before)} per step`;
  const least = `it must save ${secondsText(price + doubt)} (${parts.join(", ")})`;
  return { publish: false, why: `${lost}${saving}, too little: ${least}` };
}

function needText({ lost, draining, crowded, homeless }: Need): string {
  const elsewhere = lost.length + draining.length > 0 ? " elsewhere" : "";
  const parts = [
    ...(lost.length === 0 ? [] : [`${ranksText(lost)} gone`]),
    ...(draining.length === 0 ? [] : [`${ranksText(draining)} to leave`]),
    ...(crowded.length === 0 ? [] : [`${ranksText(crowded)} short of memory`]),
    ...(homeless === 0
      ? []
      : [`${countText(homeless, "expert has", "experts have")} no copy${elsewhere}`]),
  ];
  return parts.join(", ");
}

function ranksText(ranks: readonly number[]): string {
  const names = ranks.map(rankName);
  return names.length === 1 ? `shard ${names[0]} is` : `shards ${names.join(", ")} are`;
}

function ascending(ranks: ReadonlySet<number>): number[] {
  return [...ranks].sort((a, b) => a - b);
}
