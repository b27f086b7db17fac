/** What a load came to under one way to place experts. */

import { metricSamples } from "../rig/api.ts";
import { newCopies, placementOf, type PlacementView } from "../rig/control-api.ts";
import { distribution, timePerOutputToken } from "../load/statistics.ts";
import type { TaskRecord } from "./task-load.ts";

/** Figures of one policy. */
export interface PolicyFigures {
  readonly policy: string;
  readonly failed: number;
  readonly tokensPerSecond: number;
  readonly tpotMs: { readonly mean: number; readonly p50: number; readonly p99: number };
  /** Rows dispatched to each shard, by rank. */
  readonly rows: ReadonlyMap<number, number>;
  readonly epochs: number;
  readonly movedBytes: number;
  /** Time of a step's MoE layers, mean over the run's steps, as predicted before each and as measured, milliseconds. */
  readonly predictedMs: number;
  readonly measuredMs: number;
  /** Tokens of a step, mean over the same steps: what was predicted for, and what there were. */
  readonly predictedTokens: number;
  readonly measuredTokens: number;
}

/** What a router has counted since its start. */
export interface Counters {
  /** Rows dispatched, by rank. */
  readonly rows: ReadonlyMap<number, number>;
  /** MoE layers of steps that were computed, and the time that they took together. */
  readonly layers: number;
  readonly layerSeconds: number;
  /** Steps that were computed, and their tokens. */
  readonly steps: number;
  readonly tokens: number;
}

/** Reads a router's counters. */
export async function readCounters(url: string): Promise<Counters> {
  const samples = await metricSamples(url);
  const value = (name: string) => samples.find((sample) => sample.name === name)?.value ?? 0;
  const rows = samples
    .filter(({ name }) => name === "moe_dispatch_rows_total")
    .map(({ labels, value }) => [Number(labels["rank"]), value] as const);
  return {
    rows: new Map(rows.sort(([a], [b]) => a - b)),
    layers: value("moe_layer_seconds_count"),
    layerSeconds: value("moe_layer_seconds_sum"),
    steps: value("vllm:iteration_tokens_total_count"),
    tokens: value("vllm:iteration_tokens_total_sum"),
  };
}

/** Time between two looks at the placement, milliseconds. */
const LOOK_MS = 250;

/** Watches a router while a load runs. */
export class PolicyMeter {
  readonly #url: string;
  readonly #bytesPerExpert: number;
  readonly #timer: NodeJS.Timeout;
  #looking: Promise<void> | undefined;
  #last: PlacementView | undefined;
  #epochs = 0;
  #movedBytes = 0;
  /** Layers that were computed while something was predicted, and the predicted seconds of all of them. */
  #predictedLayers = 0;
  #predictedSeconds = 0;
  #predictedTokens = 0;
  #layersSeen: number | undefined;

  constructor(url: string, bytesPerExpert: number) {
    this.#url = url;
    this.#bytesPerExpert = bytesPerExpert;
    this.#timer = setInterval(() => {
      this.#looking ??= this.#look()
        .catch((error: unknown) => console.error(`placement: ${String(error)}`))
        .finally(() => (this.#looking = undefined));
    }, LOOK_MS);
  }

  /** Ends the watch; the figures of the records that the load gave. */
  async figures(
    policy: string,
    records: readonly TaskRecord[],
    before: Counters,
  ): Promise<PolicyFigures> {
    clearInterval(this.#timer);
    await this.#looking;
    const after = await readCounters(this.#url);
    const done = records.flatMap(({ record }) => (record.kind === "completed" ? [record] : []));
    const seconds = Math.max(...records.map(({ endedAt }) => endedAt));
    const tokens = done.reduce((sum, { outputTokens }) => sum + outputTokens, 0);
    const { mean, p50, p99 } = distribution(done.flatMap((one) => timePerOutputToken(one) ?? []));
    const layerSeconds =
      (after.layerSeconds - before.layerSeconds) / Math.max(1, after.layers - before.layers);
    return {
      policy,
      failed: records.length - done.length,
      tokensPerSecond: tokens / seconds,
      tpotMs: { mean, p50, p99 },
      rows: new Map(
        [...after.rows].map(([rank, rows]) => [rank, rows - (before.rows.get(rank) ?? 0)]),
      ),
      epochs: this.#epochs,
      movedBytes: this.#movedBytes,
      predictedMs: (this.#predictedSeconds / Math.max(1, this.#predictedLayers)) * 1000,
      measuredMs: layerSeconds * (this.#last?.layers.length ?? 0) * 1000,
      predictedTokens: this.#predictedTokens / Math.max(1, this.#predictedLayers),
      measuredTokens: (after.tokens - before.tokens) / Math.max(1, after.steps - before.steps),
    };
  }

  async #look(): Promise<void> {
    const now = await placementOf(this.#url);
    const { layers } = await readCounters(this.#url);
    const predicted = this.#last?.predicted_step_seconds;
    // A mean over steps, as the measured one: slow times have few of them.
    if (predicted !== undefined && predicted !== null && this.#layersSeen !== undefined) {
      this.#predictedLayers += layers - this.#layersSeen;
      this.#predictedSeconds += predicted * (layers - this.#layersSeen);
      const tokens = this.#last?.forecast?.tokens_per_step ?? 0;
      this.#predictedTokens += tokens * (layers - this.#layersSeen);
    }
    this.#layersSeen = layers;
    if (this.#last !== undefined && now.epoch !== this.#last.epoch) {
      this.#epochs++;
      this.#movedBytes += newCopies(this.#last, now) * this.#bytesPerExpert;
    }
    this.#last = now;
  }
}

/** The figures of all policies, in Markdown. */
export function policyTable(figures: readonly PolicyFigures[]): string {
  const head = [
    "placement",
    "tokens/s",
    "TPOT ms: mean",
    "p50",
    "p99",
    "rows to shards 0, 1, …",
    "placements",
    "MiB moved",
    "step's MoE layers ms: predicted",
    "measured",
    "tokens of a step: forecast",
    "counted",
    "failed",
  ];
  const rows = figures.map((one) => [
    one.policy,
    one.tokensPerSecond.toFixed(1),
    one.tpotMs.mean.toFixed(1),
    one.tpotMs.p50.toFixed(1),
    one.tpotMs.p99.toFixed(1),
    [...one.rows.values()].join(", "),
    `${one.epochs}`,
    (one.movedBytes / 2 ** 20).toFixed(1),
    one.predictedMs.toFixed(1),
    one.measuredMs.toFixed(1),
    one.predictedTokens.toFixed(1),
    one.measuredTokens.toFixed(1),
    `${one.failed}`,
  ]);
  return [head, head.map(() => "---"), ...rows]
    .map((cells) => `| ${cells.join(" | ")} |`)
    .join("\n");
}
