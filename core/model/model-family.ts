/** What differs between model families: how their `config.json` reads, and how their tensors are named and shaped. */

import type { ExpertTensorNames, ModelConfig } from "./config.ts";
import type { ConfigProblem } from "./config-error.ts";
import type { JsonObject } from "./json-file.ts";

/** Names of the tensors outside of the decoder layers. */
export interface ModelTensorNames {
  /** [vocabSize, hiddenSize] */
  readonly embedding: string;
  /** [hiddenSize] */
  readonly finalNorm: string;
  /** [vocabSize, hiddenSize]; the embedding's name where the two are tied. */
  readonly lmHead: string;
}

/** Names of one decoder layer's attention and norm tensors. */
export interface AttentionTensorNames {
  /** [hiddenSize] */
  readonly inputNorm: string;
  /** [numHeads · headDim, hiddenSize] */
  readonly qWeight: string;
  /** [numKvHeads · headDim, hiddenSize] */
  readonly kWeight: string;
  /** [numKvHeads · headDim, hiddenSize] */
  readonly vWeight: string;
  /** [numHeads · headDim]; there where config.qkvBias says so, as kBias and vBias. */
  readonly qBias?: string;
  /** [numKvHeads · headDim] */
  readonly kBias?: string;
  /** [numKvHeads · headDim] */
  readonly vBias?: string;
  /** [hiddenSize, numHeads · headDim] */
  readonly oWeight: string;
  /** [hiddenSize] */
  readonly postAttentionNorm: string;
}

/** Names of an MoE layer's tensors beside its routed experts. */
export interface MoeTensorNames {
  /** The layer's gate [numExperts, hiddenSize] */
  readonly gate: string;
  /** The shared expert, [sharedExpertIntermediateSize, hiddenSize] and its transpose; absent where there is none. */
  readonly sharedExpert?: ExpertTensorNames;
  /** The shared expert's own gate [1, hiddenSize] */
  readonly sharedExpertGate?: string;
}

/** One model family. */
export interface ModelFamily {
  /** `model_type` of its config.json. */
  readonly modelType: ModelConfig["modelType"];
  /** Reads a config.json of this family, or lists everything that is wrong with it. */
  parseConfig(
    raw: JsonObject,
  ): { readonly config: ModelConfig } | { readonly problems: readonly ConfigProblem[] };
  modelTensorNames(config: ModelConfig): ModelTensorNames;
  attentionTensorNames(config: ModelConfig, layer: number): AttentionTensorNames;
  moeTensorNames(config: ModelConfig, layer: number): MoeTensorNames;
  expertTensorNames(layer: number, expert: number): ExpertTensorNames;
  /** The FFN of a dense layer, [denseIntermediateSize, hiddenSize] and its transpose. */
  denseTensorNames(layer: number): ExpertTensorNames;
}
