/** Replays recorded routing over placements: planned on the windows that are past, judged on the next, step by step. Pure. */

import { assignPairs } from "../core/placement/assign-pairs.ts";
import { copyTable, type CopyTable, type SplitCosts } from "../core/placement/copy-table.ts";
import { movesBetween } from "../core/placement/moves.ts";
import type { LayerReplicas } from "../core/placement/placement.ts";
import {
  type PlacedLayers,
  PlacementError,
  planPlacement,
  type PlannerInput,
} from "../core/placement/planner.ts";
import { targetOf } from "../core/placement/policies.ts";
import { addWindow, emptyHistory, forecastLoad } from "../core/statistics/forecast.ts";

/** Experts that the gate chose, token by token. */
export interface RoutingTrace {
  readonly numTokens: number;
  /** Logical ids [numTokens, numMoeLayers, topK]. */
  readonly ids: ArrayLike<number>;
}

/** The cluster that the trace is replayed on; its loads and what is held now are the replay's business. */
export interface ReplayCluster extends Pick<
  PlannerInput,
  "layers" | "numExperts" | "topK" | "bytes" | "shards" | "router"
> {
  /** Tokens after which a new plan is made. */
  readonly windowTokens: number;
  /** Tokens of a step. */
  readonly stepTokens: number;
  /** Bytes that one plan may load. */
  readonly moveBytes: number;
  /** Whether the planner's first placement is planned from nothing, not from the static runs; absent: no. */
  readonly fromNothing?: boolean;
}

/**
 * Ways to place: contiguous runs that stay; EPLB anew for every window; the planner from where it is. A shard that is
 * draining has its part of the first placement, and gives it up with the first plan: then static runs are others, once.
 */
const POLICIES = ["static", "eplb", "ours"] as const;

/** What the steps of a policy came to. */
export interface ReplayResult {
  readonly policy: (typeof POLICIES)[number];
  /** Predicted seconds that a step's MoE layers take: with all sequences decoding, their part of TPOT. */
  readonly meanSeconds: number;
  readonly p99Seconds: number;
  /** (max − mean) / mean of the shards' pairs in a layer of a step, the mean over both. */
  readonly imbalance: number;
  /** Rows that go to shards, per token and layer. */
  readonly rowsPerToken: number;
  /** Bytes of experts that were loaded after the first placement. */
  readonly movedBytes: number;
}

/** Seconds of a window, as the forecast counts time. */
const WINDOW_SECONDS = 10;

/** Replays the trace with each policy; EPLB is left out where its equal slots have no room for all experts. */
export function replay(
  trace: RoutingTrace,
  cluster: ReplayCluster,
  onWindow?: (done: number, total: number) => void,
): ReplayResult[] {
  const total = Math.floor(trace.numTokens / cluster.windowTokens);
  const shards = cluster.shards.map((shard) => Object.assign({}, shard, { draining: false }));
  const before = { ...cluster, shards };
  const runs = POLICIES.flatMap((policy) => {
    const first = policy === "eplb" ? placeEplb(before, evenLoad(cluster)) : placeStatic(before);
    return first === undefined ? [] : [new PolicyRun(policy, cluster, first)];
  });
  const { layers, numExperts, topK, stepTokens } = cluster;
  let history = emptyHistory({ numMoeLayers: layers.length, numExperts, topK });
  for (let window = 0; window < total; window++) {
    if (window > 0) {
      const { load, deviation } = forecastLoad(history, { queued: [], tokensPerStep: stepTokens });
      for (const run of runs) run.plan(load, deviation);
      for (const run of runs) run.judge(trace, window);
    }
    history = addWindow(history, countWindow(trace, cluster, window), []);
    onWindow?.(window + 1, total);
  }
  return runs.map((run) => run.result());
}

/** One policy's placement as it changes, and the steps that it was judged by. */
class PolicyRun {
  readonly #policy: (typeof POLICIES)[number];
  readonly #cluster: ReplayCluster;
  readonly #costs: SplitCosts;
  readonly #seconds: number[] = [];
  #placed: PlacedLayers;
  #imbalance = 0;
  #rows = 0;
  #layerSteps = 0;
  #movedBytes = 0;
  /** Nothing is held yet that counts. */
  #fromNothing: boolean;

  constructor(policy: (typeof POLICIES)[number], cluster: ReplayCluster, placed: PlacedLayers) {
    this.#policy = policy;
    this.#cluster = cluster;
    this.#costs = splitCosts(cluster);
    this.#placed = placed;
    this.#fromNothing = policy === "ours" && cluster.fromNothing === true;
  }

  plan(load: Float64Array, uncertainty: Float64Array): void {
    const before = this.#placed;
    const cluster = this.#cluster;
    if (this.#policy === "static") this.#placed = placeStatic(cluster);
    if (this.#policy === "eplb") this.#placed = placeEplb(cluster, load) ?? before;
    if (this.#policy === "ours") {
      const steps = cluster.windowTokens / cluster.stepTokens;
      const { stages } = planPlacement({
        ...cluster,
        load,
        uncertainty,
        ...(!this.#fromNothing && { current: { epoch: 1, layers: before } }),
        moves: { bytes: cluster.moveBytes, steps },
      });
      this.#placed = stages.at(-1) ?? before;
    }
    if (!this.#fromNothing) this.#movedBytes += bytesLoaded(cluster, before, this.#placed);
    this.#fromNothing = false;
  }

  judge({ ids }: RoutingTrace, window: number): void {
    const { layers, topK, stepTokens, windowTokens, shards } = this.#cluster;
    const ranks = shards.map(({ rank }) => rank);
    const tables = layers.map((layer) => copyTable(this.#placed.get(layer) ?? [], ranks));
    const row = layers.length * topK;
    const chosen = new Uint16Array(stepTokens * topK);
    for (let step = 0; step + stepTokens <= windowTokens; step += stepTokens) {
      let seconds = 0;
      for (const [index, table] of tables.entries()) {
        for (let token = 0; token < stepTokens; token++) {
          const from = (window * windowTokens + step + token) * row + index * topK;
          for (let k = 0; k < topK; k++) chosen[token * topK + k] = ids[from + k];
        }
        seconds += this.#layerSeconds(chosen, table);
      }
      this.#seconds.push(seconds);
    }
  }

  result(): ReplayResult {
    const sorted = this.#seconds.toSorted((a, b) => a - b);
    const steps = Math.max(1, this.#layerSteps);
    return {
      policy: this.#policy,
      meanSeconds: sorted.reduce((sum, one) => sum + one, 0) / Math.max(1, sorted.length),
      p99Seconds: sorted[Math.floor((sorted.length - 1) * 0.99)] ?? 0,
      imbalance: this.#imbalance / steps,
      rowsPerToken: this.#rows / (steps * this.#cluster.stepTokens),
      movedBytes: this.#movedBytes,
    };
  }

  /** Seconds of one layer of one step: the router's messages and rows, then the slowest shard. */
  #layerSeconds(chosen: Uint16Array, table: CopyTable): number {
    const { topK, router, shards } = this.#cluster;
    const { fixed, perRow, perPair, perExpert } = this.#costs;
    const assigned =
      this.#policy === "ours"
        ? assignPairs(chosen, topK, table, this.#costs)
        : assignInTurns(chosen, table);
    const seconds = new Float64Array(shards.length);
    const pairs = new Float64Array(shards.length);
    const touched = new Set<number>();
    let rows = 0;
    for (let i = 0; i < chosen.length; i++) {
      const shard = assigned[i];
      pairs[shard]++;
      if (seconds[shard] === 0) seconds[shard] = fixed[shard];
      seconds[shard] += perPair[shard];
      const expert = shard * 65_536 + chosen[i];
      if (!touched.has(expert)) seconds[shard] += perExpert[shard];
      touched.add(expert);
      if (isFirstOfToken(assigned, i, topK)) {
        seconds[shard] += perRow[shard];
        rows++;
      }
    }
    const hops = pairs.reduce((count, one) => count + Number(one > 0), 0);
    this.#imbalance += (Math.max(...pairs) * shards.length) / chosen.length - 1;
    this.#rows += rows;
    this.#layerSteps++;
    return hops * router.secondsPerHop + rows * router.secondsPerRow + Math.max(...seconds);
  }
}

/** Whether no earlier pair of the same token goes to the same shard. */
function isFirstOfToken(assigned: Uint16Array, pair: number, topK: number): boolean {
  for (let i = pair - (pair % topK); i < pair; i++)
    if (assigned[i] === assigned[pair]) return false;
  return true;
}

/** An expert's copies take its pairs in turns, as peers do. */
function assignInTurns(chosen: Uint16Array, { offsets, shards }: CopyTable): Uint16Array {
  const turns = new Map<number, number>();
  return chosen.map((expert) => {
    const turn = turns.get(expert) ?? 0;
    turns.set(expert, turn + 1);
    return shards[offsets[expert] + (turn % (offsets[expert + 1] - offsets[expert]))];
  });
}

function splitCosts({ shards, router }: ReplayCluster): SplitCosts {
  const rowBytes = router.rowBytesOut + router.rowBytesIn;
  return {
    fixed: Float64Array.from(shards, ({ rttSeconds }) => rttSeconds),
    perHop: Float64Array.from(shards, () => router.secondsPerHop),
    perRow: Float64Array.from(shards, ({ bytesPerSecond }) => rowBytes / bytesPerSecond),
    perPair: Float64Array.from(shards, ({ secondsPerPair }) => secondsPerPair),
    perExpert: Float64Array.from(shards, ({ secondsPerExpert }) => secondsPerExpert),
  };
}

/** Contiguous runs of equal length on the shards that stay. */
function placeStatic({ layers, numExperts, shards: all }: ReplayCluster): PlacedLayers {
  const shards = all.filter(({ draining }) => !draining);
  const replicas: LayerReplicas = Array.from({ length: numExperts }, (_, expert) => [
    { rank: shards[Math.floor((expert * shards.length) / numExperts)].rank, share: 1 },
  ]);
  return new Map(layers.map((layer) => [layer, replicas]));
}

/** As the cluster's own policy places; undefined where its equal slots have no room for all experts. */
function placeEplb(cluster: ReplayCluster, load: Float64Array): PlacedLayers | undefined {
  try {
    return targetOf("eplb", { ...cluster, load });
  } catch (error) {
    if (error instanceof PlacementError) return undefined;
    throw error;
  }
}

function evenLoad({ layers, numExperts }: ReplayCluster): Float64Array {
  return new Float64Array(layers.length * numExperts).fill(1);
}

function bytesLoaded(
  { layers, numExperts, bytes }: ReplayCluster,
  before: PlacedLayers,
  after: PlacedLayers,
): number {
  let sum = 0;
  for (const { kind, layer, expert } of movesBetween(before, after)) {
    if (kind === "load") sum += bytes[layers.indexOf(layer) * numExperts + expert];
  }
  return sum;
}

function countWindow(
  { ids }: RoutingTrace,
  { layers, numExperts, topK, windowTokens, stepTokens }: ReplayCluster,
  window: number,
) {
  const expertTokens = new Float64Array(layers.length * numExperts);
  const row = layers.length * topK;
  for (let token = window * windowTokens; token < (window + 1) * windowTokens; token++) {
    for (let i = 0; i < row; i++) {
      expertTokens[Math.floor(i / topK) * numExperts + ids[token * row + i]]++;
    }
  }
  const series = [{ task: "trace", phase: "decode" as const, tokens: windowTokens, expertTokens }];
  return { seconds: WINDOW_SECONDS, steps: windowTokens / stepTokens, series };
}
