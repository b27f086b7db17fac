/** Rows × shards that steps dispatch where experts that go together sit together, beside the balance that it costs. */

import { assignPairs } from "../../core/placement/assign-pairs.ts";
import { NO_PARTNER } from "../../core/placement/input.ts";
import { planPlacement, type Coactivation } from "../../core/placement/planner.ts";
import { copyTable } from "../../core/placement/copy-table.ts";
import { RECORDED_SHAPE } from "../routing/recorded.ts";
import { imbalance, inputOf, ofLayer, splitCosts, type Shards } from "./contenders.ts";
import {
  countPairs,
  perStep,
  sampleSteps,
  STEP_TOKENS,
  stepsOf,
  traffics,
  type Judged,
  type Slice,
} from "./routed-load.ts";

const { layers, numExperts, topK } = RECORDED_SHAPE;

/** Partners per expert that the planner is shown. */
const TOP_N = 16;

/** What a row costs beside a pair: here as much as half a pair's compute, spread over the shards. */
const SECONDS_PER_ROW = 0.5;

/** What steps of one layer take with one plan. */
export interface Dispatched {
  /** Rows over all shards, of one token and layer. */
  readonly rows: number;
  /** (max − mean) / mean of the shards' pairs in a layer. */
  readonly imbalance: number;
}

/** The table as Markdown. */
export function rowsTable(): string {
  const lines: string[] = [];
  for (const { name, judged } of traffics()) {
    for (const numShards of [4, 8, 16]) {
      const { apart, together } = compareRows(judged, numShards);
      const saved = 1 - together.rows / apart.rows;
      lines.push(
        `| ${name}, ${numShards} shards | ${apart.rows.toFixed(3)} | ${together.rows.toFixed(3)} | ${(100 * saved).toFixed(1)} % | ${apart.imbalance.toFixed(3)} | ${together.imbalance.toFixed(3)} |`,
      );
    }
  }
  return [
    "| | rows per token and layer | with co-activation | saved | imbalance | with co-activation |",
    "| --- | ---: | ---: | ---: | ---: | ---: |",
    ...lines,
  ].join("\n");
}

/** Steps with a plan that knows what goes together, and with one that does not, on equal shards with an eighth more memory. */
export function compareRows(
  judged: readonly Judged[],
  numShards: number,
): { readonly apart: Dispatched; readonly together: Dispatched } {
  const shards = {
    secondsPerPair: Array.from({ length: numShards }, () => 1),
    redundancy: 0.125,
  };
  return {
    apart: meanOf(judged.map((one) => dispatched(one, shards, false))),
    together: meanOf(judged.map((one) => dispatched(one, shards, true))),
  };
}

function meanOf(all: readonly Dispatched[]): Dispatched {
  const mean = (of: (one: Dispatched) => number): number =>
    all.reduce((sum, one) => sum + of(one), 0) / all.length;
  return { rows: mean(({ rows }) => rows), imbalance: mean((one) => one.imbalance) };
}

/** Means over the steps of a window and the layers, planned on what was before. */
function dispatched({ future, forecast }: Judged, shards: Shards, knows: boolean): Dispatched {
  const plain = inputOf(shards, perStep(countPairs(forecast)));
  const input = {
    ...plain,
    steps: sampleSteps(forecast, 16),
    router: { ...plain.router, secondsPerRow: SECONDS_PER_ROW / shards.secondsPerPair.length },
    ...(knows && { together: coactivation(forecast) }),
  };
  const { target } = planPlacement(input);
  const costs = splitCosts(input);
  const ranks = input.shards.map(({ rank }) => rank);
  const tables = layers.map((layer) => copyTable(target.get(layer)!, ranks));
  const steps = stepsOf([future]);
  let rows = 0;
  let uneven = 0;
  for (const { stream, from, to } of steps) {
    const pairs = countPairs([{ stream, from, to }]);
    for (const index of layers.keys()) {
      const ids = idsOf({ stream, from, to }, index);
      const assigned = assignPairs(ids, topK, tables[index], costs);
      rows += rowsOf(assigned);
      const seconds = ranks.map(() => 0);
      for (const shard of assigned) seconds[shard] += costs.perPair[shard];
      uneven += imbalance(shards, () => Math.max(...seconds), index, ofLayer(pairs, index));
    }
  }
  const numLayerSteps = steps.length * layers.length;
  return { rows: rows / (numLayerSteps * STEP_TOKENS), imbalance: uneven / numLayerSteps };
}

/** Rows that go to shards: shards of each token, summed. */
function rowsOf(assigned: Uint16Array): number {
  let rows = 0;
  for (let first = 0; first < assigned.length; first += topK) {
    rows += new Set(assigned.subarray(first, first + topK)).size;
  }
  return rows;
}

/** Experts of a slice's tokens in one layer [numTokens, topK]. */
function idsOf({ stream, from, to }: Slice, index: number): Uint8Array {
  const ids = new Uint8Array((to - from) * topK);
  for (let token = from; token < to; token++) {
    const at = (token * layers.length + index) * topK;
    ids.set(stream.ids.subarray(at, at + topK), (token - from) * topK);
  }
  return ids;
}

/** Partners of each expert that the same tokens choose, per step. */
function coactivation(slices: readonly Slice[]): Coactivation {
  const counts = new Float64Array(layers.length * numExperts * numExperts);
  let numTokens = 0;
  for (const slice of slices) {
    numTokens += slice.to - slice.from;
    for (const index of layers.keys()) {
      const ids = idsOf(slice, index);
      for (let i = 0; i < ids.length; i++) {
        const first = i - (i % topK);
        const row = (index * numExperts + ids[i]) * numExperts;
        for (let j = first; j < first + topK; j++) if (j !== i) counts[row + ids[j]]++;
      }
    }
  }
  const cells = layers.length * numExperts;
  const partners = new Uint16Array(cells * TOP_N).fill(NO_PARTNER);
  const tokens = new Float64Array(cells * TOP_N);
  for (let cell = 0; cell < cells; cell++) {
    const row = counts.subarray(cell * numExperts, (cell + 1) * numExperts);
    const most = [...row.keys()].sort((a, b) => row[b] - row[a]).slice(0, TOP_N);
    for (const [n, expert] of most.entries()) {
      partners[cell * TOP_N + n] = expert;
      tokens[cell * TOP_N + n] = (row[expert] * STEP_TOKENS) / numTokens;
    }
  }
  return { topN: TOP_N, partners, tokens };
}
