/** What the planner is asked, from what a router knows of its shards and of the load that is ahead; pure. */

import type { FormatOf } from "../../../core/expert-format.ts";
import { middle } from "../../../core/middle.ts";
import { moeLayers, type ModelConfig } from "../../../core/model/config.ts";
import { LOCAL_RANK, type Placement } from "../../../core/placement/placement.ts";
import type { PlacedLayers, Policy } from "../../../core/placement/input.ts";
import type {
  Coactivation,
  MoveBudget,
  PlannedShard,
  PlannerInput,
  RouterCosts,
} from "../../../core/placement/planner.ts";
import { formatCosts, type FormatCosts } from "./format-costs.ts";
import { expertBytes } from "../../../core/weights.ts";
import type { FormatSpeed } from "../../../proto/gen/switchyard/v1/expert.ts";
import type { WireSetting } from "../../../core/wire-rows.ts";

/** What is known of a shard; what was not measured is undefined. */
export interface ShardFacts {
  readonly rank: number;
  readonly memoryBytes: number;
  readonly draining: boolean;
  readonly secondsPerPair: number | undefined;
  /** Time of a dispatch, however few its rows. */
  readonly rttSeconds: number | undefined;
  readonly bytesPerSecond: number | undefined;
  /** Bytes of experts that it loads in a second. */
  readonly loadBytesPerSecond: number | undefined;
  /** Standard deviation of its measured times, as a part of them; absent: 0. */
  readonly spread?: number;
  /** What it declares of experts in each format; absent: nothing. */
  readonly formats?: readonly FormatSpeed[];
  /** It came back with too little memory for what it is to hold, and holds nothing of that; absent: false. */
  readonly isEmpty?: boolean;
}

/** Load per step that is ahead, and the standard deviation of its error [numMoeLayers, numExperts]. */
export interface ExpectedLoad {
  readonly load: Float64Array;
  readonly deviation: Float64Array;
}

/** What a plan is made from. */
export interface PlanFacts {
  readonly config: ModelConfig;
  readonly formatOf: FormatOf;
  readonly wire: WireSetting;
  readonly shards: readonly ShardFacts[];
  readonly expected: ExpectedLoad;
  /** Loads of single steps of late; absent or none: not known [numMoeLayers, numExperts] each. */
  readonly steps?: readonly Float64Array[];
  /** Experts of one layer that the same token chooses; absent: not known. */
  readonly together?: Coactivation;
  /** What is to be held now, of which a shard that is empty holds nothing; absent: nothing. */
  readonly current?: Placement;
  readonly moves: MoveBudget;
  /** Copies of each expert at least, as far as memory goes. */
  readonly minCopies: number;
  /** How experts are placed; absent: auto. */
  readonly policy?: Policy;
}

/** Where nothing was measured: a slow CPU, a local network, an SSD. */
const DEFAULT_SECONDS_PER_PAIR = 1e-3;
const DEFAULT_RTT_SECONDS = 5e-4;
const DEFAULT_BYTES_PER_SECOND = 1e9;
const DEFAULT_LOAD_BYTES_PER_SECOND = 2e8;

/** A router's time for a message and its answer beside what the round trip has, and for each byte of them. */
const SECONDS_PER_HOP = 1e-4;
const SECONDS_PER_BYTE = 2.5e-9;

const BYTES_PER_VALUE: Readonly<Record<WireSetting, number>> = { f32: 4, f16: 2, int8: 1 };

/** The planner's input. A shard that was not measured counts as the middle one of those that were, of two as the slower. */
export function plannerInput(facts: PlanFacts): PlannerInput {
  const { config, formatOf, expected, steps = [], together, current } = facts;
  const { moves, minCopies, policy } = facts;
  const { numExperts, numExpertsPerToken: topK } = config;
  const layers = moeLayers(config);
  const formats = Array.from({ length: layers.length * numExperts }, (_, cell) =>
    formatOf(layers[Math.floor(cell / numExperts)], cell % numExperts),
  );
  const bytes = Float64Array.from(formats, (format) => expertBytes(config, format));
  const costs = formatCosts(
    { formats, load: expected.load },
    facts.shards.map((shard) => shard.formats ?? []),
  );
  // A pair of an expert in another format counts as so many of the commonest.
  const worked = (load: Float64Array) =>
    costs.work === undefined ? load : load.map((pairs, cell) => pairs * costs.work![cell]);
  return {
    layers,
    numExperts,
    topK,
    load: worked(expected.load),
    uncertainty: worked(expected.deviation),
    // None given would be none judged by: the planner draws its own.
    ...(steps.length > 0 && { steps: costs.work === undefined ? steps : steps.map(worked) }),
    ...(together && { together }),
    bytes,
    ...(costs.reads && { reads: costs.reads }),
    shards: plannedShards(facts.shards, costs),
    router: routerCosts(config.hiddenSize, topK, facts.wire),
    ...(current && { current: { ...current, layers: copiesThere(current.layers, facts.shards) } }),
    moves,
    minCopies,
    ...(policy && { policy }),
  };
}

/**
 * The copies that are there. A shard that is empty refuses every stage that takes more than its memory: it must not count
 * as one that gives copies up step by step.
 */
function copiesThere(layers: PlacedLayers, shards: readonly ShardFacts[]): PlacedLayers {
  const empty = new Set(shards.flatMap(({ rank, isEmpty }) => (isEmpty === true ? [rank] : [])));
  if (empty.size === 0) return layers;
  return new Map(
    [...layers].map(([layer, replicas]) => [
      layer,
      replicas.map((copies) => copies.filter(({ rank }) => !empty.has(rank))),
    ]),
  );
}

/** How fast a shard is, nothing unknown. */
export interface ShardSpeeds {
  readonly secondsPerPair: number;
  readonly rttSeconds: number;
  readonly bytesPerSecond: number;
  readonly loadBytesPerSecond: number;
}

/** Of each the middle one of those that were measured, of two the slower. */
export function usualSpeeds(shards: readonly ShardFacts[]): ShardSpeeds {
  // Of the way to a router's own device nothing follows for others'.
  const remote = shards.filter(({ rank }) => rank !== LOCAL_RANK);
  const measured = (of: (shard: ShardFacts) => number | undefined) =>
    remote.flatMap((shard) => of(shard) ?? []);
  return {
    secondsPerPair: middle(measured((one) => one.secondsPerPair)) ?? DEFAULT_SECONDS_PER_PAIR,
    rttSeconds: middle(measured((one) => one.rttSeconds)) ?? DEFAULT_RTT_SECONDS,
    bytesPerSecond: middleRate(measured((one) => one.bytesPerSecond)) ?? DEFAULT_BYTES_PER_SECOND,
    loadBytesPerSecond:
      middleRate(measured((one) => one.loadBytesPerSecond)) ?? DEFAULT_LOAD_BYTES_PER_SECOND,
  };
}

/** A shard with what is usual in place of what was not measured. */
export function knownShard(shard: ShardFacts, usual: ShardSpeeds): ShardFacts & ShardSpeeds {
  return {
    ...shard,
    secondsPerPair: shard.secondsPerPair ?? usual.secondsPerPair,
    rttSeconds: shard.rttSeconds ?? usual.rttSeconds,
    bytesPerSecond: shard.bytesPerSecond ?? usual.bytesPerSecond,
    loadBytesPerSecond: shard.loadBytesPerSecond ?? usual.loadBytesPerSecond,
  };
}

function plannedShards(shards: readonly ShardFacts[], costs: FormatCosts): PlannedShard[] {
  const usual = usualSpeeds(shards);
  return shards.map((facts): PlannedShard => {
    const shard = knownShard(facts, usual);
    return {
      rank: shard.rank,
      ...costs.divide(shard.secondsPerPair, shard.formats ?? []),
      rttSeconds: shard.rttSeconds,
      bytesPerSecond: shard.bytesPerSecond,
      memoryBytes: shard.memoryBytes,
      loadSecondsPerByte: 1 / shard.loadBytesPerSecond,
      draining: shard.draining,
      ...(shard.spread !== undefined && { spread: shard.spread }),
    };
  });
}

/** A row is hidden states with ids of 2 and weights of 4 bytes; its partial sum is in f32. */
function routerCosts(hiddenSize: number, topK: number, wire: WireSetting): RouterCosts {
  const rowBytesOut = hiddenSize * BYTES_PER_VALUE[wire] + topK * 6;
  const rowBytesIn = hiddenSize * 4;
  return {
    secondsPerHop: SECONDS_PER_HOP,
    secondsPerRow: (rowBytesOut + rowBytesIn) * SECONDS_PER_BYTE,
    rowBytesOut,
    rowBytesIn,
  };
}

/** The middle rate: of an even count the slower, as the upper of their times is. */
function middleRate(rates: readonly number[]): number | undefined {
  const usual = middle(rates.map((rate) => -rate));
  return usual === undefined ? undefined : -usual;
}
