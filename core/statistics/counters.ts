/** Counts of routing: which experts the gate chose, with what weight, for whom, and which ones together. */

import { PairCounts } from "./pairs.ts";
import type { CountedPhase, LayerRouting, RoutedStep, RoutingShape } from "./routed-step.ts";
import { TaskLabels } from "./task-labels.ts";

/** Units of a weight sum per 1.0 of gate weight: sums are whole numbers, so that adding them commutes exactly. */
export const WEIGHT_UNITS = 1_000_000;

/** Counts of one task and phase. */
export interface SeriesCounts {
  readonly task: string;
  readonly phase: CountedPhase;
  /**
   * Tokens that went through the model, then for each MoE layer and logical expert a pair: its tokens, and its gate
   * weights in WEIGHT_UNITS [1 + numMoeLayers · numExperts · 2].
   */
  readonly cells: Float64Array;
}

/** Cells of a series. */
export function seriesCells(shape: RoutingShape): number {
  return 1 + shape.layers.length * shape.numExperts * 2;
}

/**
 * Counts since the process started; they only grow, and take a fixed amount of memory per series.
 *
 * Pairs of experts are counted for all tasks and phases together: per task they would take as much for each of 65
 * labels, and what they serve (placing experts that are chosen together) does not depend on the task of a single token.
 * Every cell is a whole number below 2^53, held exactly.
 */
export class RoutingCounters {
  readonly shape: RoutingShape;
  /** In order of first appearance, at most 2 × 65. */
  readonly series: SeriesCounts[] = [];
  /** Experts of one layer that the same token chooses. */
  readonly together: PairCounts;
  /**
   * An expert of a MoE layer and one of the next that the same token chooses. Shown, and planned by nobody: rows come back
   * to the router after each layer, so that no placement saves any of them for it.
   */
  readonly next: PairCounts;
  /** Steps that were recorded [1]. */
  readonly steps = new Float64Array(1);
  readonly #labels = new TaskLabels();
  readonly #byTask: Record<CountedPhase, Map<string, SeriesCounts>> = {
    prefill: new Map(),
    decode: new Map(),
  };
  /** Series of each sequence of the step at hand: kept, so that recording allocates nothing. */
  readonly #ofSequence: SeriesCounts[] = [];

  constructor(shape: RoutingShape) {
    this.shape = shape;
    this.together = new PairCounts(shape, "together");
    this.next = new PairCounts(shape, "next");
  }

  /** Adds one step; answers false, and adds nothing, where its arrays do not fit the model. */
  record(step: RoutedStep): boolean {
    if (!this.#fits(step)) return false;
    for (let i = 0; i < step.sequences.length; i++) {
      const sequence = step.sequences[i];
      const series = this.#seriesOf(sequence.task, sequence.phase);
      series.cells[0] += sequence.numTokens;
      this.#ofSequence[i] = series;
    }
    const { layers } = this.shape;
    let previous: LayerRouting | undefined;
    for (let l = 0; l < layers.length; l++) {
      const routing = step.routing.get(layers[l]);
      if (routing !== undefined) {
        this.#countExperts(l, routing, step);
        this.together.add(l, step.numTokens, routing.ids);
        if (previous !== undefined) this.next.add(l - 1, step.numTokens, previous.ids, routing.ids);
      }
      previous = routing;
    }
    this.steps[0]++;
    this.together.endStep(step.numTokens);
    this.next.endStep(step.numTokens);
    return true;
  }

  /** Tokens per layer and expert of one phase, all tasks together [numMoeLayers, numExperts]. */
  load(phase: CountedPhase): Float64Array {
    const total = new Float64Array(this.shape.layers.length * this.shape.numExperts);
    for (const { phase: ofSeries, cells } of this.series) {
      if (ofSeries !== phase) continue;
      for (let i = 0; i < total.length; i++) total[i] += cells[1 + 2 * i];
    }
    return total;
  }

  #fits(step: RoutedStep): boolean {
    const { topK, numExperts } = this.shape;
    let tokens = 0;
    for (const { numTokens } of step.sequences) tokens += numTokens;
    if (tokens !== step.numTokens) return false;
    for (const routing of step.routing.values()) {
      const entries = tokens * topK;
      if (routing.topK !== topK) return false;
      if (routing.ids.length < entries || routing.weights.length < entries) return false;
      for (let i = 0; i < entries; i++) if (routing.ids[i] >= numExperts) return false;
    }
    return true;
  }

  #seriesOf(task: string, phase: CountedPhase): SeriesCounts {
    const label = this.#labels.resolve(task);
    const known = this.#byTask[phase].get(label);
    if (known !== undefined) return known;
    const series = { task: label, phase, cells: new Float64Array(seriesCells(this.shape)) };
    this.#byTask[phase].set(label, series);
    this.series.push(series);
    return series;
  }

  #countExperts(l: number, routing: LayerRouting, step: RoutedStep): void {
    const { ids, weights, topK } = routing;
    const base = l * this.shape.numExperts;
    let entry = 0;
    for (let s = 0; s < step.sequences.length; s++) {
      const { cells } = this.#ofSequence[s];
      const end = entry + step.sequences[s].numTokens * topK;
      for (; entry < end; entry++) {
        const cell = 1 + (base + ids[entry]) * 2;
        const weight = weights[entry];
        cells[cell]++;
        // A weight that is no number, or negative, says nothing: its token still counts.
        if (weight > 0) cells[cell + 1] += Math.round(weight * WEIGHT_UNITS);
      }
    }
  }
}
