/** What the engine knows of a model: the sizes and options of its `config.json`, under the house's names. */

/** What stands in a decoder layer after attention. */
export type LayerKind = "moe" | "dense";

/** Names of the model families, as `model_type` of config.json has them. */
export type ModelType =
  | "deepseek"
  | "deepseek_v2"
  | "deepseek_v3"
  | "gpt_oss"
  | "granitemoe"
  | "mixtral"
  | "olmoe"
  | "qwen2_moe"
  | "qwen3_moe";

/** Sizes and options of a model. */
export interface ModelConfig {
  readonly modelType: ModelType;
  readonly vocabSize: number;
  readonly hiddenSize: number;
  readonly numLayers: number;
  /** Kind of each decoder layer, [numLayers]. */
  readonly layers: readonly LayerKind[];
  readonly attention: AttentionConfig;
  readonly rope: RopeConfig;
  /** Positions that the model was made for: the longest context. */
  readonly maxPositions: number;
  readonly rmsNormEps: number;
  readonly tieWordEmbeddings: boolean;
  readonly gate: GateConfig;
  /** Logical experts of an MoE layer. */
  readonly numExperts: number;
  readonly numExpertsPerToken: number;
  /** Width of one routed expert. */
  readonly expertIntermediateSize: number;
  /** What stands between the projections of every FFN. */
  readonly activation: Activation;
  /** The projections of routed experts carry biases. */
  readonly expertBias: boolean;
  /** The expert that every token of an MoE layer takes. */
  readonly sharedExpert?: SharedExpertConfig;
  /** Width of the FFN of dense layers; 0 where there are none. */
  readonly denseIntermediateSize: number;
  readonly multipliers: Multipliers;
  /** Encoding of the published checkpoint's large weights; undefined has them as plain floats. */
  readonly quantization?: Quantization;
}

/** FP8 E4M3 with a scale per block of 128×128 (DeepSeek-V3), or MXFP4 with a scale per 32 values of a row (gpt-oss). */
export type Quantization = "fp8" | "mxfp4";

/** Attention with keys and values per head: MHA, GQA, MQA. */
export interface HeadsAttention {
  readonly kind: "heads";
  readonly numHeads: number;
  /** Divides numHeads. */
  readonly numKvHeads: number;
  /** Columns of one head. */
  readonly headDim: number;
  /** What scores are multiplied by before the softmax. */
  readonly scale: number;
  /** q, k and v projections carry a bias. */
  readonly qkvBias: boolean;
  /** The output projection carries a bias. */
  readonly outputBias: boolean;
  /** RMSNorm of q and k before RoPE: none, over each head [headDim], or over the whole projection. */
  readonly qkNorm: "none" | "head" | "whole";
  /** q, k and v (after their norms) are clamped to ±clipQkv. */
  readonly clipQkv?: number;
  /** Every head has a sink: a logit that takes part in the softmax and has no value. */
  readonly sinks: boolean;
  /** Keys that a query of each layer sees, its own position included; undefined sees all. [numLayers] */
  readonly windows: readonly (number | undefined)[];
}

/** Multi-head latent attention (DeepSeek-V2): keys and values of all heads come from one latent vector per token. */
export interface LatentAttention {
  readonly kind: "latent";
  readonly numHeads: number;
  /** Rank of the query's down-projection; undefined projects at once. */
  readonly qLoraRank?: number;
  /** Columns of the latent vector. */
  readonly kvLoraRank: number;
  /** Columns of a head's query and key without positions. */
  readonly nopeDim: number;
  /** Columns of a head's query, and of the one key of all heads, that positions turn. */
  readonly ropeDim: number;
  /** Columns of a head's value. */
  readonly valueDim: number;
  /** What scores are multiplied by before the softmax. */
  readonly scale: number;
  /** Epsilon of the RMSNorms of the latent vectors. */
  readonly normEps: number;
}

export type AttentionConfig = HeadsAttention | LatentAttention;

/** Rotary positions. */
export interface RopeConfig {
  /** Columns that are turned: headDim or ropeDim. */
  readonly dim: number;
  readonly theta: number;
  /** Pairs are (2i, 2i+1) instead of (i, i + dim/2). */
  readonly interleaved: boolean;
  /** Interpolation of the frequencies; undefined leaves them as they are. */
  readonly yarn?: YarnConfig;
  /** What cos and sin are multiplied by. */
  readonly magnitude: number;
}

/** YaRN (arXiv 2309.00071): low frequencies are divided by `factor`, high ones kept, with a ramp between. */
export interface YarnConfig {
  readonly factor: number;
  readonly originalPositions: number;
  readonly betaFast: number;
  readonly betaSlow: number;
  /** The ramp's ends are rounded to whole columns. */
  readonly truncate: boolean;
}

/** How an MoE layer's gate chooses experts and weighs them. */
export interface GateConfig {
  /** What router logits become: softmax over all experts, or a sigmoid of each. */
  readonly score: "softmax" | "sigmoid";
  /** Router logits carry a bias [numExperts]. */
  readonly bias: boolean;
  /** Experts are chosen by score + correction [numExperts], and weighed by score. */
  readonly correction: boolean;
  /** Experts are chosen from the best groups only. */
  readonly groups?: GateGroups;
  /** Top-k weights are divided by their sum. A softmax over the chosen logits alone is "softmax" with this. */
  readonly normTopkProb: boolean;
  /** What top-k weights are multiplied by in the end. */
  readonly scaling: number;
}

/** Consecutive experts in groups of equal size. */
export interface GateGroups {
  /** Divides numExperts. */
  readonly numGroups: number;
  /** Groups whose experts can be chosen. */
  readonly topGroups: number;
  /** A group's rank: its highest choice score, or the sum of its two highest. */
  readonly rank: "highest" | "sumOfTwo";
}

/** The function between an FFN's projections. */
export type Activation =
  /** silu(gate) · up */
  | { readonly kind: "silu" }
  /** (u + 1) · g · sigmoid(alpha · g) with g = min(gate, limit), u = clamp(up, -limit, limit): gpt-oss. */
  | { readonly kind: "clampedSwiglu"; readonly alpha: number; readonly limit: number };

/** The shared expert of MoE layers. */
export interface SharedExpertConfig {
  readonly intermediateSize: number;
  /** The shared expert's result is multiplied by the sigmoid of a gate of its own. */
  readonly gated: boolean;
}

/** Factors that some families scale by; 1 elsewhere. */
export interface Multipliers {
  readonly embedding: number;
  /** Of what attention and FFN add to the hidden states. */
  readonly residual: number;
  /** Of the logits. */
  readonly logits: number;
}

/** Multipliers of families that have none. */
export const NO_MULTIPLIERS: Multipliers = { embedding: 1, residual: 1, logits: 1 };

/** Values that the KV cache holds per token and layer: keys and values of all KV heads, or the latent vector and the turned key. */
export function kvWidth(attention: AttentionConfig): number {
  return attention.kind === "heads"
    ? 2 * attention.numKvHeads * attention.headDim
    : attention.kvLoraRank + attention.ropeDim;
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

/** Indices of the MoE layers, ascending. */
export function moeLayers(config: ModelConfig): number[] {
  return config.layers.flatMap((kind, layer) => (kind === "moe" ? [layer] : []));
}
