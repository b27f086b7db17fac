/** What differs between model families: how their `config.json` reads, and where their tensors stand in a checkpoint. */

import type { ModelConfig, ModelType } from "../config.ts";
import type { ConfigProblem } from "../config-error.ts";
import type { JsonObject } from "../checkpoint/json-file.ts";

/** Where a matrix or a vector stands in a checkpoint. */
export interface TensorSource {
  /** Name of the tensor; that of MXFP4 values goes on with `_blocks`, and of their scales with `_scales`. */
  readonly name: string;
  /** Shape that the model needs; a matrix is [out, in]. */
  readonly shape: readonly number[];
  /** Encoding of the published tensor, BF16 where it is absent; files in other encodings are read as well. */
  readonly encoding?: TensorEncoding;
  /** Which part of the tensor is meant; all of it where this is absent. */
  readonly part?: TensorPart;
  /** Where re-saved checkpoints have it, if they have none of the name. */
  readonly resaved?: TensorSource;
}

export type TensorEncoding = "F32" | "FP8" | "MXFP4";

/** The rows that are meant of a tensor of several matrices [out, in], or of several vectors. */
export interface TensorPart {
  /** Shape of the whole tensor; a matrix per expert is [numExperts, rows, columns], a vector [numExperts, rows]. */
  readonly shape: readonly number[];
  /** Index into the first dimension: the expert. */
  readonly index: number;
  readonly firstRow: number;
  /** From one row that is meant to the next. */
  readonly rowStep: number;
  /** The tensor is [numExperts, columns, rows]: its matrices are [in, out]. */
  readonly transposed: boolean;
}

/** A projection's weight [out, in] and bias [out]. */
export interface ProjectionSource {
  readonly weight: TensorSource;
  readonly bias?: TensorSource;
}

/** The tensors outside of the decoder layers. */
export interface ModelSources {
  /** [vocabSize, hiddenSize] */
  readonly embedding: TensorSource;
  /** [hiddenSize] */
  readonly finalNorm: TensorSource;
  /** [vocabSize, hiddenSize]; the same source as the embedding where the two are tied. */
  readonly lmHead: TensorSource;
}

/** Attention with keys and values per head. */
export interface HeadsSources {
  readonly kind: "heads";
  /** [numHeads · headDim, hiddenSize] */
  readonly q: ProjectionSource;
  /** [numKvHeads · headDim, hiddenSize] */
  readonly k: ProjectionSource;
  /** [numKvHeads · headDim, hiddenSize] */
  readonly v: ProjectionSource;
  /** [hiddenSize, numHeads · headDim] */
  readonly o: ProjectionSource;
  /** [headDim], or [numHeads · headDim] where qkNorm is "whole". */
  readonly qNorm?: TensorSource;
  /** [headDim], or [numKvHeads · headDim]. */
  readonly kNorm?: TensorSource;
  /** [numHeads] */
  readonly sinks?: TensorSource;
}

/** Multi-head latent attention. */
export interface LatentSources {
  readonly kind: "latent";
  /** [qLoraRank, hiddenSize]; absent where the query is projected at once. */
  readonly qDown?: TensorSource;
  /** [qLoraRank] */
  readonly qNorm?: TensorSource;
  /** [numHeads · (nopeDim + ropeDim), qLoraRank or hiddenSize]; per head the columns without positions first. */
  readonly q: TensorSource;
  /** [kvLoraRank + ropeDim, hiddenSize]; the latent vector first, then the key that positions turn. */
  readonly kvDown: TensorSource;
  /** [kvLoraRank] */
  readonly kvNorm: TensorSource;
  /** [numHeads · (nopeDim + valueDim), kvLoraRank]; per head the key's rows first, then the value's. */
  readonly kvUp: TensorSource;
  /** [hiddenSize, numHeads · valueDim] */
  readonly o: ProjectionSource;
}

/** One decoder layer's norms and attention. */
export interface AttentionSources {
  /** [hiddenSize] */
  readonly inputNorm: TensorSource;
  readonly attention: HeadsSources | LatentSources;
  /** [hiddenSize] */
  readonly postAttentionNorm: TensorSource;
}

/** One gated FFN: down(activation(gate·x, up·x)). */
export interface FfnSources {
  /** [intermediateSize, hiddenSize] */
  readonly gate: TensorSource;
  /** [intermediateSize, hiddenSize] */
  readonly up: TensorSource;
  /** [hiddenSize, intermediateSize] */
  readonly down: TensorSource;
  /** [intermediateSize]; the biases are there where config.expertBias says so. */
  readonly gateBias?: TensorSource;
  /** [intermediateSize] */
  readonly upBias?: TensorSource;
  /** [hiddenSize] */
  readonly downBias?: TensorSource;
}

/** An MoE layer's tensors beside its routed experts. */
export interface MoeSources {
  /** The layer's gate [numExperts, hiddenSize], and its bias [numExperts]. */
  readonly gate: ProjectionSource;
  /** [numExperts]; what is added to scores for the choice of experts. */
  readonly correction?: TensorSource;
  readonly shared?: FfnSources;
  /** [1, hiddenSize]; the gate of the shared expert. */
  readonly sharedGate?: TensorSource;
}

/** What a config.json says, or everything that is wrong with it. */
export type ParsedConfig =
  | { readonly config: ModelConfig }
  | { readonly problems: readonly ConfigProblem[] };

/** One model family. */
export interface ModelFamily {
  /** `model_type` of its config.json. */
  readonly modelType: ModelType;
  /** Other `model_type`s that stand for exactly the same. */
  readonly aliases?: readonly string[];
  /** Reads a config.json of this family, or lists everything that is wrong with it. */
  parseConfig(raw: JsonObject): ParsedConfig;
  modelSources(config: ModelConfig): ModelSources;
  attentionSources(config: ModelConfig, layer: number): AttentionSources;
  moeSources(config: ModelConfig, layer: number): MoeSources;
  expertSources(config: ModelConfig, layer: number, expert: number): FfnSources;
  /** The FFN of a dense layer. */
  denseSources(config: ModelConfig, layer: number): FfnSources;
  /** Whether a tensor belongs to layers that the model does not need to answer, as those that only help to draft. */
  isExtra?(config: ModelConfig, name: string): boolean;
}
