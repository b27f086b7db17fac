/** Where experts live and why, for people and programs: GET /v1/placement and POST /v1/placement/plan. */

import { rankName } from "../../core/placement/placement.ts";
import {
  PlacementError,
  PlannerInputError,
  type PlacedLayers,
  type Plan,
} from "../../core/placement/planner.ts";
import { RedisUnavailableError } from "../../core/platform/redis.ts";
import type { LoadForecast } from "../../core/statistics/forecast.ts";
import type { Assessment } from "../cluster/planning/assessment.ts";
import { followingOf } from "../cluster/planning/following.ts";
import { bytesIn } from "../cluster/planning/held-bytes.ts";
import { decide, MARGIN, needOf } from "../cluster/planning/plan-decision.ts";
import type { ClusterPlacement } from "../cluster/planning/first-placement.ts";
import { plannerInput } from "../cluster/planning/planner-input.ts";
import { suppose, WhatIfError } from "../cluster/planning/what-if.ts";
import { InvalidRequestError, UnavailableError } from "../engine/errors.ts";
import { NotFoundError } from "./api-errors.ts";
import { balanceView, lostView, shardRows, shownRanks } from "./placement-shards.ts";
import { planBodySchema, whatIfOf } from "./placement-schemas.ts";
import type { PlacementSource } from "./placement-source.ts";
import { parseBody } from "./request-body.ts";
import type { Serving } from "./serving.ts";

/** Questions of clients that may wait for the planner's thread, so that its own plans need not wait for long. */
const MAX_QUESTIONS = 8;

/** The source. Throws NotFoundError where the router holds all experts itself, UnavailableError while it starts. */
export function requireSource(serving: Pick<Serving, "placement">): PlacementSource {
  if (serving.placement === undefined) {
    throw new NotFoundError("this router has no shards: it holds all experts itself", "no_shards");
  }
  const source = serving.placement();
  if (source === undefined) throw new UnavailableError("the router is starting");
  return source;
}

/** What the router works by, why, and what it is worth. Throws as requireSource; UnavailableError before the first placement. */
export async function placementView(serving: Pick<Serving, "placement">): Promise<object> {
  const source = requireSource(serving);
  const current = requireCurrent(source);
  const members = source.cluster.members();
  const reason = source.cluster.missingReason();
  const { epoch, layers } = current.placement;
  const stored = source.follower.stored();
  const facts = stored?.placement.epoch === epoch ? stored : undefined;
  const planner = source.planner.state();
  const { worth, forecast } = await assessed(source, current);
  const now = Date.now();
  const lost = lostView(layers, members, { now, worth, reason });
  const ranks = shownRanks(layers, worth);
  return {
    object: "placement",
    epoch,
    weights: current.weights,
    experts: current.experts,
    planned_by: facts?.plannedBy ?? null,
    planned_at: facts === undefined ? null : new Date(facts.at).toISOString(),
    why: facts?.why ?? null,
    stages_left: facts?.stagesLeft ?? 0,
    leading: planner.leading,
    redis_away: planner.redisAway,
    last_decision: planner.leading ? planner.decision : null,
    // The one that plans tells the others, when shards that may be back soon are not.
    unplaceable:
      (planner.leading ? planner.unplaceable : source.follower.unplaceable()) ??
      worth?.noRoom ??
      null,
    lost,
    predicted_step_seconds: worth?.stepSeconds ?? null,
    imbalance: worth?.imbalance ?? null,
    forecast: forecast === undefined ? null : forecastView(forecast),
    next_layer:
      forecast === undefined || lost !== null ? null : nextLayerView(source, layers, forecast),
    shards: shardRows(ranks, layers, members, { now, worth }),
    layers: layersView(layers, worth?.binding, { worth, forecast, ranks }),
  };
}

/** What would be planned if things were as the body supposes; nothing is changed. Throws InvalidRequestError, and as placementView. */
export async function planView(serving: Serving, body: unknown): Promise<object> {
  const source = requireSource(serving);
  const fields = parseBody(planBodySchema, body, serving.log);
  const current = requireCurrent(source);
  const facts = await source.outlook.facts(current);
  const layers = [...current.placement.layers.keys()];
  try {
    const supposed = suppose(facts, layers, whatIfOf(fields));
    const plan = await source.thread.plan(plannerInput(supposed), MAX_QUESTIONS);
    const before = supposed.current?.layers ?? nothingHeld(facts.config.numExperts, layers);
    const last = plan.stages.at(-1) ?? plan.target;
    const need = needOf(before, supposed.shards, supposed.minCopies, bytesIn(supposed));
    const { copiesLacking: copiesLackingAfter } = needOf(last, supposed.shards, supposed.minCopies);
    const decision = decide(plan, need, {
      policy: supposed.policy,
      margin: MARGIN,
      changed: (fields.shards ?? []).length > 0,
      copiesLackingAfter,
    });
    return planResult(plan, decision, fields.include_layers === true ? last : undefined);
  } catch (error) {
    if (error instanceof WhatIfError) throw new InvalidRequestError(error.message, error.param);
    if (error instanceof PlacementError) {
      throw new InvalidRequestError(error.message, "shards", "no_room");
    }
    if (error instanceof PlannerInputError) throw new InvalidRequestError(error.message);
    throw error;
  }
}

/** Layers whose experts have no copies. */
function nothingHeld(numExperts: number, layers: readonly number[]): PlacedLayers {
  const none = Array.from({ length: numExperts }, () => []);
  return new Map(layers.map((layer) => [layer, none]));
}

function planResult(
  { why, moves, stages }: Plan,
  decision: { readonly publish: boolean; readonly why: string },
  layers: PlacedLayers | undefined,
): object {
  const loads = moves.filter(({ kind }) => kind === "load").length;
  return {
    object: "placement.plan",
    worth_it: decision.publish,
    why: decision.why,
    predicted_step_seconds_before: why.secondsBefore ?? null,
    predicted_step_seconds: why.secondsAfter,
    move_seconds_per_step: why.moveSecondsPerStep,
    moves: { loads, drops: moves.length - loads, bytes: why.movedBytes, stages: stages.length },
    shards: why.shards.map(balanceView),
    binding: Object.fromEntries([...why.binding].map(([layer, rank]) => [layer, rankName(rank)])),
    ...(layers && { layers: layersView(layers, why.binding) }),
  };
}

function requireCurrent(source: PlacementSource): ClusterPlacement {
  const current = source.cluster.current();
  if (current !== undefined) return current;
  const { unplaceable, decision } = source.planner.state();
  throw new UnavailableError(`there is no placement yet: ${unplaceable ?? decision}`);
}

/** A placement and the load that it is judged by; neither where the statistics can not be read. */
interface Judgement {
  readonly worth?: Assessment | undefined;
  readonly forecast?: LoadForecast | undefined;
  /** Of the shards that are shown; absent: none. */
  readonly ranks?: readonly number[];
}

async function assessed(
  { outlook, thread }: PlacementSource,
  current: ClusterPlacement,
): Promise<Judgement> {
  try {
    const facts = await outlook.facts(current);
    const { layers } = current.placement;
    const input = plannerInput(facts);
    // Without the copies of shards that came back with nothing.
    const worth = await thread.assess(input, input.current?.layers ?? layers, MAX_QUESTIONS);
    return { worth, forecast: await outlook.forecast() };
  } catch (error) {
    if (error instanceof RedisUnavailableError) return {};
    throw error;
  }
}

/** `predictor_errors`: of the next window's load per expert, as a part of it, of late; `forecast` is the mean that is used. */
function forecastView({ tokensPerStep, errors }: LoadForecast): object {
  return { tokens_per_step: tokensPerStep, predictor_errors: errors ?? null };
}

/** Parts of all pairs of consecutive layers' experts that this router has counted. */
function nextLayerView(
  { pairs }: PlacementSource,
  layers: PlacedLayers,
  { load }: LoadForecast,
): object | null {
  const following = followingOf(layers, [...layers.keys()], pairs().next, load);
  return following === undefined
    ? null
    : { on_same_shard: following.together, by_chance: following.byChance };
}

function layersView(
  layers: PlacedLayers,
  binding: ReadonlyMap<number, number> | undefined,
  { worth, forecast, ranks = [] }: Judgement = {},
): object[] {
  return [...layers].map(([layer, replicas], index) => ({
    layer,
    waits_for: binding?.has(layer) === true ? rankName(binding.get(layer) ?? 0) : null,
    // Which of the predictors has erred least there of late, and so has most say; null before that is known.
    predictor: forecast && ((forecast.errors && forecast.chosen[index]) ?? null),
    seconds: worth && secondsView(worth, layer, ranks),
    experts: replicas.map((copies) =>
      copies.map(({ rank, share }) => ({ rank: rankName(rank), share })),
    ),
  }));
}

/** In the order of the shards, null for those that are away; null where nothing can be expected. */
function secondsView(
  { layerSeconds, shards }: Assessment,
  layer: number,
  ranks: readonly number[],
): object | null {
  if (layerSeconds === undefined) return null;
  const ofShards = layerSeconds.get(layer) ?? [];
  const byRank = new Map(shards.map(({ rank }, index) => [rank, ofShards[index]]));
  return ranks.map((rank) => byRank.get(rank) ?? null);
}
