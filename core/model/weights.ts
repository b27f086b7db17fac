/** A checkpoint's tensors by what they are for. */

import type { ExpertWeights } from "../expert-device.ts";
import type { HostTensor } from "../tensor.ts";
import type { Checkpoint } from "./checkpoint.ts";
import type { ExpertTensorNames } from "./config.ts";
import { familyOf } from "./families.ts";

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

/** One decoder layer without its routed experts. */
export interface LayerWeights {
  /** [hiddenSize] */
  readonly inputNorm: HostTensor;
  /** [numHeads · headDim, hiddenSize] */
  readonly q: Projection;
  /** [numKvHeads · headDim, hiddenSize] */
  readonly k: Projection;
  /** [numKvHeads · headDim, hiddenSize] */
  readonly v: Projection;
  /** [hiddenSize, numHeads · headDim] */
  readonly o: HostTensor;
  /** [hiddenSize] */
  readonly postAttentionNorm: HostTensor;
  readonly ffn: LayerFfn;
}

/** What stands after a layer's attention, as far as it is no routed expert. */
export type LayerFfn =
  | { readonly kind: "dense"; readonly dense: ExpertWeights }
  | {
      readonly kind: "moe";
      /** [numExperts, hiddenSize] */
      readonly gate: HostTensor;
      readonly shared?: SharedExpertWeights;
    };

/** The shared expert, and the gate [1, hiddenSize] whose sigmoid weighs it. */
export interface SharedExpertWeights {
  readonly expert: ExpertWeights;
  readonly gate: HostTensor;
}

/** Reads embedding, final norm and output head. Throws as `checkpoint.read`. */
export async function readModelWeights(checkpoint: Checkpoint): Promise<ModelWeights> {
  const { config } = checkpoint;
  const names = familyOf(config).modelTensorNames(config);
  const embedding = await checkpoint.read(names.embedding);
  return {
    embedding,
    finalNorm: await checkpoint.read(names.finalNorm),
    lmHead: names.lmHead === names.embedding ? embedding : await checkpoint.read(names.lmHead),
  };
}

/** Reads one decoder layer without its routed experts. Throws as `checkpoint.read`. */
export async function readLayer(checkpoint: Checkpoint, layer: number): Promise<LayerWeights> {
  const { config } = checkpoint;
  const names = familyOf(config).attentionTensorNames(config, layer);
  const projection = async (weight: string, bias: string | undefined): Promise<Projection> => ({
    weight: await checkpoint.read(weight),
    bias: bias === undefined ? undefined : await checkpoint.read(bias),
  });
  return {
    inputNorm: await checkpoint.read(names.inputNorm),
    q: await projection(names.qWeight, names.qBias),
    k: await projection(names.kWeight, names.kBias),
    v: await projection(names.vWeight, names.vBias),
    o: await checkpoint.read(names.oWeight),
    postAttentionNorm: await checkpoint.read(names.postAttentionNorm),
    ffn: await readFfn(checkpoint, layer),
  };
}

async function readFfn(checkpoint: Checkpoint, layer: number): Promise<LayerFfn> {
  const { config } = checkpoint;
  const family = familyOf(config);
  if (config.layers[layer] === "dense") {
    return { kind: "dense", dense: await readTriple(checkpoint, family.denseTensorNames(layer)) };
  }
  const { gate, sharedExpert, sharedExpertGate } = family.moeTensorNames(config, layer);
  return {
    kind: "moe",
    gate: await checkpoint.read(gate),
    shared:
      sharedExpert && sharedExpertGate
        ? {
            expert: await readTriple(checkpoint, sharedExpert),
            gate: await checkpoint.read(sharedExpertGate),
          }
        : undefined,
  };
}

/** Reads one routed expert. Throws RangeError where the model has no such expert, else as `checkpoint.read`. */
export async function readExpert(
  checkpoint: Checkpoint,
  layer: number,
  expert: number,
): Promise<ExpertWeights> {
  const { config } = checkpoint;
  const known = Number.isInteger(expert) && expert >= 0 && expert < config.numExperts;
  if (config.layers[layer] !== "moe" || !known) {
    const limits = `${config.numLayers} layers of ${config.numExperts} experts`;
    throw new RangeError(`layer ${layer} expert ${expert}: not an expert; the model has ${limits}`);
  }
  return readTriple(checkpoint, familyOf(config).expertTensorNames(layer, expert));
}

async function readTriple(
  checkpoint: Checkpoint,
  names: ExpertTensorNames,
): Promise<ExpertWeights> {
  return {
    gate: await checkpoint.read(names.gate),
    up: await checkpoint.read(names.up),
    down: await checkpoint.read(names.down),
  };
}
