/** What the engine knows of a model: the sizes and options of its `config.json`, under the house's names. */

/** What stands in a decoder layer after attention. */
export type LayerKind = "moe" | "dense";

/** Sizes and options of a model. */
export interface ModelConfig {
  readonly modelType: "qwen2_moe";
  readonly vocabSize: number;
  readonly hiddenSize: number;
  readonly numLayers: number;
  /** Kind of each decoder layer, [numLayers]. */
  readonly layers: readonly LayerKind[];
  readonly numHeads: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  /** q, k and v projections carry a bias. */
  readonly qkvBias: boolean;
  /** Positions that the model was made for: the longest context. */
  readonly maxPositions: number;
  readonly ropeTheta: number;
  readonly rmsNormEps: number;
  readonly tieWordEmbeddings: boolean;
  /** Logical experts of an MoE layer. */
  readonly numExperts: number;
  readonly numExpertsPerToken: number;
  /** Width of one routed expert. */
  readonly expertIntermediateSize: number;
  /** Width of the gated shared expert; 0 where there is none. */
  readonly sharedExpertIntermediateSize: number;
  /** Width of the FFN of dense layers. */
  readonly denseIntermediateSize: number;
  /** Top-k weights are divided by their sum. */
  readonly normTopkProb: boolean;
}

/** Sampling defaults and end-of-sequence ids of `generation_config.json`; what it does not say is absent. */
export interface GenerationConfig {
  readonly eosTokenIds: readonly number[];
  readonly maxNewTokens?: number;
  readonly temperature?: number;
  readonly topP?: number;
  readonly topK?: number;
  readonly minP?: number;
  readonly repetitionPenalty?: number;
}

/** One projection triple of an expert FFN: down(silu(gate·x) * up·x). */
export interface ExpertTensorNames {
  /** [expertIntermediateSize, hiddenSize] */
  readonly gate: string;
  /** [expertIntermediateSize, hiddenSize] */
  readonly up: string;
  /** [hiddenSize, expertIntermediateSize] */
  readonly down: string;
}

/** Indices of the MoE layers, ascending. */
export function moeLayers(config: ModelConfig): number[] {
  return config.layers.flatMap((kind, layer) => (kind === "moe" ? [layer] : []));
}
