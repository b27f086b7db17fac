/** How far each predictor is from the window that follows, and how even a placement planned from it turns out. */

import { eplb } from "../../core/placement/eplb.ts";
import { addWindow, emptyHistory, forecastLoad } from "../../core/statistics/forecast.ts";
import { imbalance } from "../../core/statistics/load.ts";
import { predict, PREDICTORS } from "../../core/statistics/predictors.ts";
import { totalOf } from "../../core/statistics/windows.ts";
import { RECORDED_SHAPE } from "../routing/recorded.ts";
import type { Trace } from "./traces.ts";

/** What is compared: the predictors, the forecast that is made of them, the same without the queue, and the window itself. */
export const COMPARED = [...PREDICTORS, "forecast", "no queue", "hindsight"] as const;

/** One of COMPARED. */
export type Compared = (typeof COMPARED)[number];

/** Shards and slots of each that placements are planned for, by EPLB. */
export const CLUSTERS = [
  { shards: 8, slots: 64 },
  { shards: 8, slots: 80 },
] as const;

/** Means over the windows of a trace from the second on. */
export interface TraceFigures {
  readonly name: string;
  readonly windows: number;
  /** Mean absolute error over the load. */
  readonly error: Readonly<Record<Compared, number>>;
  /** (max - mean) / mean of the shards' loads, mean over layers; one per cluster. */
  readonly imbalance: Readonly<Record<Compared, readonly number[]>>;
  /** Part of the loads that are within one, and within two, of the forecast's standard deviations. */
  readonly within: readonly [number, number];
}

/** Figures of a trace, and where it has any those of the windows in which the task changed. */
export function measureTrace({ name, windows }: Trace): TraceFigures[] {
  const { layers, numExperts, topK } = RECORDED_SHAPE;
  let history = emptyHistory({ numMoeLayers: layers.length, numExperts, topK });
  let blind = history;
  const all = new Means();
  const switches = new Means();
  for (const { queued, counted, switched } of windows) {
    const actual = totalOf(counted, layers.length * numExperts);
    if (history.profiles.long.tokens > 0) {
      const means = switched && name.startsWith("switching") ? [all, switches] : [all];
      const forecast = forecastLoad(history, { queued, tokensPerStep: actual.tokens });
      const ahead = { queued, seconds: counted.seconds, numExperts };
      for (const one of COMPARED) {
        const load =
          one === "hindsight"
            ? actual.share
            : one === "forecast"
              ? forecast.load
              : one === "no queue"
                ? forecastLoad(blind, { queued: [], tokensPerStep: actual.tokens }).load
                : predict(one, history.profiles, ahead).map((share) => share * actual.tokens);
        const error = relativeError(load, actual.share);
        const uneven = CLUSTERS.map(({ shards, slots }) =>
          unevenness(load, actual.share, shards, slots),
        );
        for (const mean of means) mean.add(one, error, uneven);
      }
      const off = forecast.load.map(
        (load, i) => Math.abs(load - actual.share[i]) / forecast.deviation[i],
      );
      for (const mean of means) mean.addDeviations(off);
    }
    history = addWindow(history, counted, queued);
    blind = addWindow(blind, counted, []);
  }
  return [
    all.figures(name),
    ...(switches.windows === 0 ? [] : [switches.figures(`${name}: windows after a switch`)]),
  ];
}

function relativeError(predicted: Float64Array, actual: Float64Array): number {
  let off = 0;
  let sum = 0;
  for (let i = 0; i < actual.length; i++) {
    off += Math.abs(predicted[i] - actual[i]);
    sum += actual[i];
  }
  return off / sum;
}

/** Imbalance of `actual` under EPLB's placement for `planned`, mean over layers; copies share evenly. */
function unevenness(
  planned: Float64Array,
  actual: Float64Array,
  shards: number,
  slots: number,
): number {
  const { numExperts, layers } = RECORDED_SHAPE;
  let sum = 0;
  for (let from = 0; from < planned.length; from += numExperts) {
    const { experts, copies } = eplb(planned.subarray(from, from + numExperts), slots, shards);
    sum += imbalance(
      experts.map((held) =>
        held.reduce((load, expert) => load + actual[from + expert] / copies[expert], 0),
      ),
    );
  }
  return sum / layers.length;
}

class Means {
  windows = 0;
  readonly #error = new Map<Compared, number>();
  readonly #imbalance = new Map<Compared, number[]>();
  readonly #within: [number, number] = [0, 0];
  #deviations = 0;

  add(one: Compared, error: number, uneven: readonly number[]): void {
    if (one === COMPARED[0]) this.windows++;
    this.#error.set(one, (this.#error.get(one) ?? 0) + error);
    const before = this.#imbalance.get(one) ?? CLUSTERS.map(() => 0);
    this.#imbalance.set(
      one,
      before.map((sum, i) => sum + uneven[i]),
    );
  }

  addDeviations(off: Float64Array): void {
    for (const one of off) {
      this.#deviations++;
      if (one <= 1) this.#within[0]++;
      if (one <= 2) this.#within[1]++;
    }
  }

  figures(name: string): TraceFigures {
    const of = <T>(value: (one: Compared) => T) =>
      Object.fromEntries(COMPARED.map((one) => [one, value(one)])) as Record<Compared, T>;
    return {
      name,
      windows: this.windows,
      error: of((one) => this.#error.get(one)! / this.windows),
      imbalance: of((one) => this.#imbalance.get(one)!.map((sum) => sum / this.windows)),
      within: [this.#within[0] / this.#deviations, this.#within[1] / this.#deviations],
    };
  }
}
