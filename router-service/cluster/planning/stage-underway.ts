/** A stage of a move while shards load it: what of it is held, and what may take its place. */

import { PlacementError } from "../../../core/placement/errors.ts";
import { type Placement, ranksOf } from "../../../core/placement/placement.ts";
import type { PlacedLayers, Plan } from "../../../core/placement/planner.ts";
import type { MemberView } from "../cluster-member.ts";
import { bytesIn, rankBytes } from "./held-bytes.ts";
import { isUrgent, needOf } from "./plan-decision.ts";
import { type PlanFacts, plannerInput, type ShardFacts } from "./planner-input.ts";
import type { PlannerThread } from "./planner-thread.ts";

/** A shard as plans see it come and go. */
export type SeenShard = Pick<ShardFacts, "rank" | "draining">;

/** A stage that is published and not adopted yet. */
export interface StageUnderway {
  /** Its own. */
  readonly epoch: number;
  /** What rows are sent by meanwhile. */
  readonly inUse: PlacedLayers;
  readonly stage: PlacedLayers;
  /** The shards as it was planned for them; undefined where another router planned it. */
  readonly planned: readonly SeenShard[] | undefined;
}

/** The stage that stands where a router works by the placement before it; undefined where it works by it already. */
export function underwayOf(
  { epoch, layers: stage }: Placement,
  inUse: Placement,
  planned: StageUnderway["planned"],
): StageUnderway | undefined {
  return epoch > inUse.epoch ? { epoch, inUse: inUse.layers, stage, planned } : undefined;
}

/**
 * Why a stage may have to give way. bereft: shards are gone that its experts have no other copy on; changed: a shard with
 * copies is to leave that was not, or one is there that was not, and nothing more urgent is under way.
 */
export type Upset = "bereft" | "changed";

/** What has come up since a stage was planned; undefined where it may go on. */
export function upsetOf(
  { inUse, stage, planned: seen }: StageUnderway,
  there: readonly SeenShard[],
): Upset | undefined {
  const planned = seen ?? there.map(({ rank }) => ({ rank, draining: false }));
  if (homelessIn(stage, there) > homelessIn(stage, planned)) return "bereft";
  const known = new Map(planned.map((shard) => [shard.rank, shard.draining]));
  const leaving = [stage, inUse].flatMap((layers) => needOf(layers, there, 1).draining);
  if (leaving.some((rank) => known.get(rank) !== true)) return "changed";
  const joined = there.some(({ rank, draining }) => !draining && !known.has(rank));
  return joined && !isUrgent(needOf(inUse, planned, 1)) ? "changed" : undefined;
}

/** Experts, over all layers, without a copy on a shard that is there. */
function homelessIn(layers: PlacedLayers, shards: readonly SeenShard[]): number {
  const staying = shards.map(({ rank }) => ({ rank, draining: false }));
  return needOf(layers, staying, 1).homeless;
}

/** What shards hold: all that is in use, and what the stage asks of those that `have` it, which takes no rows yet. */
export function heldOf(
  { inUse, stage }: Pick<StageUnderway, "inUse" | "stage">,
  have: ReadonlySet<number | undefined>,
): PlacedLayers {
  return new Map(
    [...inUse].map(([layer, replicas]) => [
      layer,
      replicas.map((copies, expert) => {
        const more = (stage.get(layer)?.[expert] ?? []).filter(
          ({ rank }) => have.has(rank) && copies.every((copy) => copy.rank !== rank),
        );
        if (more.length === 0) return copies;
        const all = [...copies, ...more.map(({ rank }) => ({ rank, share: 0 }))];
        return all.sort((a, b) => a.rank - b.rank);
      }),
    ]),
  );
}

/** A plan from where things are, in the place of a stage where one is underway. Rejects as PlannerThread.plan. */
export async function planFrom(
  facts: PlanFacts,
  underway: StageUnderway | undefined,
  members: readonly Pick<MemberView, "rank" | "epochs" | "status">[],
  thread: Pick<PlannerThread, "plan">,
): Promise<Plan> {
  if (underway !== undefined) return planUnderway(facts, underway, members, thread);
  const plan = await thread.plan(plannerInput(facts));
  return facts.shards.some(({ isEmpty }) => isEmpty) ? insteadOf(plan) : plan;
}

/**
 * A plan that takes a stage's place. It begins with what is held; where something must move, nothing else does, and
 * shards that still load the stage get nothing new where others have room.
 */
async function planUnderway(
  facts: PlanFacts,
  { epoch, inUse, stage }: StageUnderway,
  members: readonly Pick<MemberView, "rank" | "epochs" | "status">[],
  thread: Pick<PlannerThread, "plan">,
): Promise<Plan> {
  const have = new Set(
    members.flatMap(({ rank, epochs, status }) =>
      epochs.includes(epoch) || status?.epochs.includes(epoch) === true ? [rank] : [],
    ),
  );
  const held = heldOf({ inUse, stage }, have);
  const bytesOf = bytesIn(facts);
  const urgent = [inUse, stage].some((layers) =>
    isUrgent(needOf(layers, facts.shards, 1, bytesOf)),
  );
  const ahead: PlanFacts = {
    ...facts,
    current: { epoch: facts.current?.epoch ?? 0, layers: held },
    ...(urgent && { moves: { ...facts.moves, bytes: 0 } }),
  };
  const loading = new Set(ranksOf({ epoch, layers: stage }).filter((rank) => !have.has(rank)));
  const spared = facts.shards.map((shard) => {
    if (!loading.has(shard.rank)) return shard;
    const memoryBytes = Math.min(shard.memoryBytes, rankBytes(bytesOf, held, shard.rank));
    return { ...shard, memoryBytes };
  });
  let plan: Plan;
  try {
    plan = await thread.plan(plannerInput({ ...ahead, shards: spared }));
  } catch (error) {
    if (!(error instanceof PlacementError)) throw error;
    plan = await thread.plan(plannerInput(ahead));
  }
  // The stage, which must not be, is taken back.
  return urgent ? insteadOf(plan) : plan;
}

/** A plan in the place of what must not stand: where nothing has to move from where things are, that is its one stage. */
function insteadOf(plan: Plan): Plan {
  return plan.stages.length === 0 ? { ...plan, stages: [plan.target] } : plan;
}
