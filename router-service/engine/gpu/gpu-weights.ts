/** A model's weights on the router's GPU: everything but its routed experts. */

import { ropeTable } from "../../../core/cpu/rope.ts";
import type { WeightsDtype } from "../../../core/expert-device.ts";
import { type Gpu, settleWrites, upload } from "../../../core/gpu/device.ts";
import { type GpuMatrix, uploadMatrix } from "../../../core/gpu/matrix.ts";
import { uploadVectors } from "../../../core/gpu/weights.ts";
import type { Checkpoint } from "../../../core/model/checkpoint/checkpoint.ts";
import type { ModelConfig } from "../../../core/model/config.ts";
import { familyOf } from "../../../core/model/families/families.ts";
import type { TensorSource } from "../../../core/model/families/model-family.ts";
import {
  type LayerFfn,
  type LayerWeights,
  readLayer,
} from "../../../core/model/checkpoint/weights.ts";
import { bytesOf, type HostTensor, numElements, toF32 } from "../../../core/tensor.ts";
import { type GpuFfnWeights, uploadFfn } from "./gpu-ffn.ts";
import { type GpuHeadsWeights, uploadHeads } from "./gpu-heads.ts";
import { type GpuLatentWeights, uploadLatent } from "./gpu-latent.ts";

/** One decoder layer's weights. */
export interface GpuLayerWeights {
  /** f32 [hiddenSize] */
  readonly inputNorm: GPUBuffer;
  readonly attention: GpuHeadsWeights | GpuLatentWeights;
  /** f32 [hiddenSize] */
  readonly postAttentionNorm: GPUBuffer;
  readonly ffn:
    | { readonly kind: "dense"; readonly dense: GpuFfnWeights }
    | {
        readonly kind: "moe";
        /** f32 [gateStride, hiddenSize]: the experts' rows, the shared expert's gate, zeros */
        readonly gate: GpuMatrix;
        /** f32 [2, numExperts]: bias and correction, where the model has one of them */
        readonly gateTerms?: GPUBuffer;
        readonly shared?: GpuFfnWeights;
      };
}

/** A model's weights on one device. */
export interface GpuWeights {
  /** f32 [maxModelLen, rope.dim/2, 2] (cos, sin) */
  readonly rope: GPUBuffer;
  /** [vocabSize, hiddenSize] */
  readonly embedding: GpuMatrix;
  /** [vocabSize, hiddenSize]; the embedding itself where the two are tied */
  readonly lmHead: GpuMatrix;
  /** f32 [hiddenSize]; with the factor of the logits */
  readonly finalNorm: GPUBuffer;
  readonly layers: readonly GpuLayerWeights[];
}

/** What loading needs. */
export interface GpuWeightsOptions {
  readonly checkpoint: Checkpoint;
  readonly weights: WeightsDtype;
  /** Longest context: rows of the rotary table. */
  readonly maxModelLen: number;
  /** Called after each layer that was loaded. */
  readonly onProgress?: (loaded: number, total: number) => void;
}

/** Uploads the weights that every router holds. Rejects with OutOfDeviceMemoryError, WeightOverflowError, and as reading does. */
export async function loadGpuWeights(gpu: Gpu, options: GpuWeightsOptions): Promise<GpuWeights> {
  const { checkpoint, weights } = options;
  const { config } = checkpoint;
  const rope = upload(gpu, "rotary table", ropeTable(options.maxModelLen, config.rope));
  const sources = familyOf(config).modelSources(config);
  // One after the other: each is given up before the next is read.
  const matrix = async (name: string, source: TensorSource) => {
    const uploaded = uploadMatrix(gpu, name, [await checkpoint.read(source)], weights);
    await settleWrites(gpu);
    return uploaded;
  };
  const embedding = await matrix("embedding", sources.embedding);
  const tied = sources.lmHead.name === sources.embedding.name;
  const lmHead = tied ? embedding : await matrix("lm_head", sources.lmHead);
  const norm = scaled(await checkpoint.read(sources.finalNorm), config.multipliers.logits);
  const finalNorm = uploadVectors(gpu, "final norm", [norm]);
  const layers: GpuLayerWeights[] = [];
  for (let layer = 0; layer < config.numLayers; layer++) {
    const of = await readLayer(checkpoint, layer);
    layers.push(uploadLayer(gpu, config, `layer ${layer}`, of, weights));
    await settleWrites(gpu);
    options.onProgress?.(layer + 1, config.numLayers);
  }
  return { rope, embedding, lmHead, finalNorm, layers };
}

function uploadLayer(
  gpu: Gpu,
  config: ModelConfig,
  at: string,
  of: LayerWeights,
  weights: WeightsDtype,
): GpuLayerWeights {
  return {
    inputNorm: uploadVectors(gpu, `${at} input norm`, [of.inputNorm]),
    attention: uploadAttention(gpu, config, at, of, weights),
    postAttentionNorm: uploadVectors(gpu, `${at} post-attention norm`, [of.postAttentionNorm]),
    ffn: uploadLayerFfn(gpu, at, of.ffn, weights),
  };
}

function uploadAttention(
  gpu: Gpu,
  config: ModelConfig,
  at: string,
  { attention }: LayerWeights,
  weights: WeightsDtype,
): GpuLayerWeights["attention"] {
  if (attention.kind === "heads") return uploadHeads(gpu, at, attention, weights);
  if (config.attention.kind === "latent") {
    return uploadLatent(gpu, at, attention, config.attention, weights);
  }
  throw new TypeError(`${at}: latent weights for attention per head`);
}

function uploadLayerFfn(
  gpu: Gpu,
  at: string,
  ffn: LayerFfn,
  weights: WeightsDtype,
): GpuLayerWeights["ffn"] {
  if (ffn.kind === "dense") {
    return { kind: "dense", dense: uploadFfn(gpu, at, ffn.dense, weights) };
  }
  const { gate, correction, shared } = ffn;
  const [numExperts, hiddenSize] = gate.weight.shape;
  const rows = [gate.weight, shared?.gate ?? zeros(1, hiddenSize)];
  const terms = [gate.bias ?? zeros(numExperts), correction ?? zeros(numExperts)];
  return {
    kind: "moe",
    // The gate stays in f32 whatever the cluster's dtype: it is small, and its rounding would move tokens.
    gate: uploadMatrix(gpu, `${at} gate`, rows, "f32"),
    gateTerms: gate.bias || correction ? uploadVectors(gpu, `${at} gate terms`, terms) : undefined,
    shared: shared && uploadFfn(gpu, `${at} shared`, shared.expert, weights),
  };
}

/** A vector times a factor. */
function scaled(vector: HostTensor, factor: number): HostTensor {
  const values = toF32(vector).map((value) => value * factor);
  return { shape: vector.shape, dtype: "F32", bytes: bytesOf(values) };
}

function zeros(...shape: readonly number[]): HostTensor {
  return { shape, dtype: "F32", bytes: new Uint8Array(numElements(shape) * 4) };
}
