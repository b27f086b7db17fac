/** A checkpoint's tensors by what they are for. */

import type { ExpertWeights, StoredExpert } from "../../expert-device.ts";
import type { HostTensor } from "../../tensor.ts";
import type { Checkpoint } from "./checkpoint.ts";
import { familyOf } from "../families/families.ts";
import type {
  FfnSources,
  HeadsSources,
  LatentSources,
  ProjectionSource,
  TensorSource,
} from "../families/model-family.ts";

/** Tensors outside of the decoder layers. */
export interface ModelWeights {
  /** [vocabSize, hiddenSize] */
  readonly embedding: HostTensor;
  /** [hiddenSize] */
  readonly finalNorm: HostTensor;
  /** [vocabSize, hiddenSize]; the embedding itself where the two are tied. */
  readonly lmHead: HostTensor;
}

/** A projection's weight [out, in] and bias [out]. */
export interface Projection {
  readonly weight: HostTensor;
  readonly bias?: HostTensor;
}

/** Attention with keys and values per head. */
export interface HeadsWeights {
  readonly kind: "heads";
  /** [numHeads · headDim, hiddenSize] */
  readonly q: Projection;
  /** [numKvHeads · headDim, hiddenSize] */
  readonly k: Projection;
  /** [numKvHeads · headDim, hiddenSize] */
  readonly v: Projection;
  /** [hiddenSize, numHeads · headDim] */
  readonly o: Projection;
  /** [headDim], or [numHeads · headDim] where qkNorm is "whole". */
  readonly qNorm?: HostTensor;
  /** [headDim], or [numKvHeads · headDim]. */
  readonly kNorm?: HostTensor;
  /** [numHeads] */
  readonly sinks?: HostTensor;
}

/** Multi-head latent attention. */
export interface LatentWeights {
  readonly kind: "latent";
  /** [qLoraRank, hiddenSize] with its norm [qLoraRank]; absent where the query is projected at once. */
  readonly qDown?: { readonly weight: HostTensor; readonly norm: HostTensor };
  /** [numHeads · (nopeDim + ropeDim), qLoraRank or hiddenSize]; per head the columns without positions first. */
  readonly q: HostTensor;
  /** [kvLoraRank + ropeDim, hiddenSize]; the latent vector first, then the key that positions turn. */
  readonly kvDown: HostTensor;
  /** [kvLoraRank] */
  readonly kvNorm: HostTensor;
  /** [numHeads · (nopeDim + valueDim), kvLoraRank]; per head the key's rows first, then the value's. */
  readonly kvUp: HostTensor;
  /** [hiddenSize, numHeads · valueDim] */
  readonly o: Projection;
}

export type AttentionWeights = HeadsWeights | LatentWeights;

/** One decoder layer without its routed experts. */
export interface LayerWeights {
  /** [hiddenSize] */
  readonly inputNorm: HostTensor;
  readonly attention: AttentionWeights;
  /** [hiddenSize] */
  readonly postAttentionNorm: HostTensor;
  readonly ffn: LayerFfn;
}

/** What stands after a layer's attention, as far as it is no routed expert. */
export type LayerFfn =
  | { readonly kind: "dense"; readonly dense: ExpertWeights }
  | {
      readonly kind: "moe";
      /** [numExperts, hiddenSize], and its bias [numExperts]. */
      readonly gate: Projection;
      /** [numExperts]; what is added to scores for the choice of experts. */
      readonly correction?: HostTensor;
      readonly shared?: SharedExpertWeights;
    };

/** The shared expert, and the gate [1, hiddenSize] whose sigmoid weighs it. */
export interface SharedExpertWeights {
  readonly expert: ExpertWeights;
  readonly gate?: HostTensor;
}

/** Reads embedding, final norm and output head. Throws as `checkpoint.read`. */
export async function readModelWeights(checkpoint: Checkpoint): Promise<ModelWeights> {
  const { config } = checkpoint;
  const sources = familyOf(config).modelSources(config);
  const embedding = await checkpoint.read(sources.embedding);
  return {
    embedding,
    finalNorm: await checkpoint.read(sources.finalNorm),
    lmHead:
      sources.lmHead.name === sources.embedding.name
        ? embedding
        : await checkpoint.read(sources.lmHead),
  };
}

/** Reads one decoder layer without its routed experts. Throws as `checkpoint.read`. */
export async function readLayer(checkpoint: Checkpoint, layer: number): Promise<LayerWeights> {
  const { config } = checkpoint;
  const sources = familyOf(config).attentionSources(config, layer);
  return {
    inputNorm: await checkpoint.read(sources.inputNorm),
    attention:
      sources.attention.kind === "heads"
        ? await readHeads(checkpoint, sources.attention)
        : await readLatent(checkpoint, sources.attention),
    postAttentionNorm: await checkpoint.read(sources.postAttentionNorm),
    ffn: await readLayerFfn(checkpoint, layer),
  };
}

async function readHeads(checkpoint: Checkpoint, sources: HeadsSources): Promise<HeadsWeights> {
  return {
    kind: "heads",
    q: await readProjection(checkpoint, sources.q),
    k: await readProjection(checkpoint, sources.k),
    v: await readProjection(checkpoint, sources.v),
    o: await readProjection(checkpoint, sources.o),
    qNorm: await readOptional(checkpoint, sources.qNorm),
    kNorm: await readOptional(checkpoint, sources.kNorm),
    sinks: await readOptional(checkpoint, sources.sinks),
  };
}

async function readLatent(checkpoint: Checkpoint, sources: LatentSources): Promise<LatentWeights> {
  return {
    kind: "latent",
    qDown:
      sources.qDown && sources.qNorm
        ? {
            weight: await checkpoint.read(sources.qDown),
            norm: await checkpoint.read(sources.qNorm),
          }
        : undefined,
    q: await checkpoint.read(sources.q),
    kvDown: await checkpoint.read(sources.kvDown),
    kvNorm: await checkpoint.read(sources.kvNorm),
    kvUp: await checkpoint.read(sources.kvUp),
    o: await readProjection(checkpoint, sources.o),
  };
}

async function readLayerFfn(checkpoint: Checkpoint, layer: number): Promise<LayerFfn> {
  const { config } = checkpoint;
  const family = familyOf(config);
  if (config.layers[layer] === "dense") {
    return { kind: "dense", dense: await readFfn(checkpoint, family.denseSources(config, layer)) };
  }
  const { gate, correction, shared, sharedGate } = family.moeSources(config, layer);
  return {
    kind: "moe",
    gate: await readProjection(checkpoint, gate),
    correction: await readOptional(checkpoint, correction),
    shared: shared && {
      expert: await readFfn(checkpoint, shared),
      gate: await readOptional(checkpoint, sharedGate),
    },
  };
}

/** Reads one routed expert; MXFP4 stays as it is. Throws RangeError where the model has no such expert, else as `checkpoint.read`. */
export async function readExpert(
  checkpoint: Checkpoint,
  layer: number,
  expert: number,
): Promise<StoredExpert> {
  const { config } = checkpoint;
  const known = Number.isInteger(expert) && expert >= 0 && expert < config.numExperts;
  if (config.layers[layer] !== "moe" || !known) {
    const limits = `${config.numLayers} layers of ${config.numExperts} experts`;
    throw new RangeError(`layer ${layer} expert ${expert}: not an expert; the model has ${limits}`);
  }
  const sources = familyOf(config).expertSources(config, layer, expert);
  const [gate, up, down] = await checkpoint.readMatrices([sources.gate, sources.up, sources.down]);
  return { gate, up, down, ...(await readBiases(checkpoint, sources)) };
}

async function readFfn(checkpoint: Checkpoint, sources: FfnSources): Promise<ExpertWeights> {
  const [gate, up, down] = await checkpoint.readTogether([sources.gate, sources.up, sources.down]);
  return { gate, up, down, ...(await readBiases(checkpoint, sources)) };
}

async function readBiases(
  checkpoint: Checkpoint,
  { gateBias, upBias, downBias }: FfnSources,
): Promise<Pick<ExpertWeights, "gateBias" | "upBias" | "downBias">> {
  if (!gateBias || !upBias || !downBias) return {};
  const biases = await checkpoint.readTogether([gateBias, upBias, downBias]);
  return { gateBias: biases[0], upBias: biases[1], downBias: biases[2] };
}

async function readProjection(
  checkpoint: Checkpoint,
  { weight, bias }: ProjectionSource,
): Promise<Projection> {
  return { weight: await checkpoint.read(weight), bias: await readOptional(checkpoint, bias) };
}

async function readOptional(
  checkpoint: Checkpoint,
  source: TensorSource | undefined,
): Promise<HostTensor | undefined> {
  return source && checkpoint.read(source);
}
