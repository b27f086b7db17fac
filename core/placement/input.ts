/** What the planner is given, and what it answers. */

import type { LayerReplicas, Placement } from "./placement.ts";

/**
 * auto: as planPlacement decides. static: one copy of each expert, in turns over the shards. eplb: DeepSeek's EPLB, every
 * shard with as many slots as the smallest has memory for, rows split evenly over copies.
 */
export const POLICIES = ["auto", "static", "eplb"] as const;

/** One of POLICIES. */
export type Policy = (typeof POLICIES)[number];

/** Copies of the experts of each MoE layer: a placement without its epoch. */
export type PlacedLayers = ReadonlyMap<number, LayerReplicas>;

/** What a shard costs, as the routers measured it; of LOCAL_RANK the link is free: Infinity bytes/s. */
export interface ShardCosts {
  readonly rank: number;
  /** Time that one row through one expert takes. */
  readonly secondsPerPair: number;
  /** Time that touching one expert takes, whatever its rows: reading its weights. */
  readonly secondsPerExpert: number;
  /** From the routers and back, and what computing takes however few the rows. */
  readonly rttSeconds: number;
  readonly bytesPerSecond: number;
  /** Standard deviation of what these were measured as, as a part of it; absent: 0. */
  readonly spread?: number;
}

/** A shard as the planner sees it. */
export interface PlannedShard extends ShardCosts {
  /** What its experts may take together. */
  readonly memoryBytes: number;
  /** Time that getting one byte of an expert onto its device takes. */
  readonly loadSecondsPerByte: number;
  /** It gets no expert, and those that it has are given to others. */
  readonly draining: boolean;
}

/** What a router spends on dispatching. */
export interface RouterCosts {
  /** Its own time for one message to one shard and the answer, one after the other for all shards of a layer. */
  readonly secondsPerHop: number;
  /** Its own time for one row to one shard and its partial sum. */
  readonly secondsPerRow: number;
  /** Bytes of one row on the way to a shard. */
  readonly rowBytesOut: number;
  /** Bytes of one row's partial sum on the way back. */
  readonly rowBytesIn: number;
}

/** No expert, in the ids of a Coactivation. */
export const NO_PARTNER = 0xffff;

/** For every MoE layer × expert the experts that are chosen together with it most often. */
export interface Coactivation {
  /** Partners of one expert at most. */
  readonly topN: number;
  /** Logical ids, NO_PARTNER where there are fewer [numMoeLayers, numExperts, topN]. */
  readonly partners: Uint16Array;
  /** Tokens of a step that choose both [numMoeLayers, numExperts, topN]. */
  readonly tokens: Float64Array;
}

/** What a plan is made from. All loads are of one step: of the routers' typical one. */
export interface PlannerInput {
  /** Indices of the MoE layers, ascending [numMoeLayers]. */
  readonly layers: readonly number[];
  readonly numExperts: number;
  /** Experts per token. */
  readonly topK: number;
  /** Forecast: pairs of a token and an expert per step [numMoeLayers, numExperts]. */
  readonly load: Float64Array;
  /** Standard deviation of the forecast's error, pairs per step; absent: 0 [numMoeLayers, numExperts]. */
  readonly uncertainty?: Float64Array;
  /** Loads of single steps of the kind that is ahead, at most 64; absent: drawn from load [numMoeLayers, numExperts]. */
  readonly steps?: readonly Float64Array[];
  /** Experts of one layer that the same token chooses: what sits together on a shard goes there in one row. */
  readonly together?: Coactivation;
  /** Device memory of each expert, bytes [numMoeLayers, numExperts]. */
  readonly bytes: Float64Array;
  /** What touching each expert takes, as a multiple of a shard's secondsPerExpert; absent: 1 [numMoeLayers, numExperts]. */
  readonly reads?: Float64Array;
  /** In any order, no rank twice; LOCAL_RANK is one of them where the routers have room. */
  readonly shards: readonly PlannedShard[];
  readonly router: RouterCosts;
  /** What is held now; absent: nothing. Ranks that are not among the shards are lost, with what they hold. */
  readonly current?: Placement;
  readonly moves: MoveBudget;
  /** Copies of each expert at least, as far as memory goes; absent: 1. */
  readonly minCopies?: number;
  /** How experts are placed; absent: auto. */
  readonly policy?: Policy;
  /** Bound of each layer's search, in elementary operations per expert and shard; absent: by the size of the plan, without a clock. */
  readonly effort?: number;
}

/** What moving may cost. */
export interface MoveBudget {
  /**
   * Bytes that one plan loads at most, beside what it must: experts without a copy, those of draining shards, what a shard
   * has no room for any more, and copies that `minCopies` asks for. A much better placement that takes more is gone to in
   * parts, some layers after the other: what saves the time may be that the last expert of a layer leaves a shard. A part
   * has at least the layers that save a tenth of a step, whatever their bytes, unless this is 0 or something must be loaded.
   */
  readonly bytes: number;
  /** Steps that a placement is expected to stand: loading time is spread over them; fewer than one count as one. */
  readonly steps: number;
}

/** One copy that is loaded or given up. */
export interface Move {
  readonly kind: "load" | "drop";
  readonly layer: number;
  readonly expert: number;
  readonly rank: number;
}

/** Where the experts should be, and why. */
export interface Plan {
  readonly target: PlacedLayers;
  /** Loads and drops in an order that never drops a last copy and fits every shard's memory on the way. */
  readonly moves: readonly Move[];
  /** Placements to adopt one after the other, the last is the target; empty where nothing moves and no share changes. */
  readonly stages: readonly PlacedLayers[];
  readonly why: PlanReason;
}

/** What a plan is expected to bring. */
export interface PlanReason {
  /** Expected time of all MoE layers of one step as things are; absent where some expert has no live copy. */
  readonly secondsBefore?: number;
  /** The same with the target. */
  readonly secondsAfter: number;
  /** Standard deviation of the difference, as the shards' measured speeds spread. */
  readonly savingDeviation: number;
  /** Loading that the moves cost, spread over the steps of the move budget. */
  readonly moveSecondsPerStep: number;
  readonly movedBytes: number;
  /** Rank that each layer waits for, by layer. */
  readonly binding: ReadonlyMap<number, number>;
  /** In the order of the input's shards. */
  readonly shards: readonly ShardBalance[];
}

/** What a plan asks of one shard. */
export interface ShardBalance {
  readonly rank: number;
  /** Copies over all layers. */
  readonly experts: number;
  readonly bytes: number;
  /** Of memoryBytes. */
  readonly memoryBytes: number;
  /** Pairs per step over all layers. */
  readonly pairs: number;
  /** Its time per step over all layers: dispatch and compute. */
  readonly seconds: number;
}
