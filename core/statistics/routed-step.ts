/** What is counted: the experts that the gate chose in one step of a model. */

/** Phases of a sequence that are counted apart. */
export const PHASES = ["prefill", "decode"] as const;

/** One of the PHASES. */
export type CountedPhase = (typeof PHASES)[number];

/** The MoE layers of a model, as far as counting needs to know them. */
export interface RoutingShape {
  /** Indices of the MoE layers, ascending [numMoeLayers]. */
  readonly layers: readonly number[];
  /** Logical experts of a layer. */
  readonly numExperts: number;
  /** Experts per token. */
  readonly topK: number;
}

/** Chosen experts of one layer: ids and weights [numTokens, topK]. */
export interface LayerRouting {
  readonly ids: Uint32Array;
  readonly weights: Float32Array;
  readonly topK: number;
}

/** What is counted of one step; the engine's StepReport is one. */
export interface RoutedStep {
  /** In the order of the batch's rows. */
  readonly sequences: readonly {
    readonly task: string;
    readonly phase: CountedPhase;
    readonly numTokens: number;
  }[];
  readonly numTokens: number;
  /** By layer index; rows as in the batch. */
  readonly routing: ReadonlyMap<number, LayerRouting>;
}
