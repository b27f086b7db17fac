/** A model's weights on the router's GPU: everything but its routed experts. */

import { ropeTable } from "../../core/cpu/rope.ts";
import type { ExpertWeights, WeightsDtype } from "../../core/expert-device.ts";
import { type Gpu, upload } from "../../core/gpu/device.ts";
import { gateStride } from "../../core/gpu/kernels/gate.ts";
import { uploadVectors, uploadWeights } from "../../core/gpu/weights.ts";
import type { Checkpoint } from "../../core/model/checkpoint.ts";
import {
  type HeadsWeights,
  type LayerFfn,
  type LayerWeights,
  type Projection,
  readLayer,
  readModelWeights,
} from "../../core/model/weights.ts";
import type { HostTensor } from "../../core/tensor.ts";
import { UnsupportedModelError } from "./supported.ts";

/** Two projections of an FFN on the GPU. */
export interface GpuFfnWeights {
  /** [2·intermediateSize, hiddenSize], gate above up */
  readonly gateUp: GPUBuffer;
  /** [hiddenSize, intermediateSize] */
  readonly down: GPUBuffer;
}

/** One decoder layer's weights. */
export interface GpuLayerWeights {
  /** f32 [hiddenSize] */
  readonly inputNorm: GPUBuffer;
  /** [(numHeads + 2·numKvHeads)·headDim, hiddenSize], q above k above v */
  readonly qkv: GPUBuffer;
  /** f32 [(numHeads + 2·numKvHeads)·headDim] */
  readonly qkvBias: GPUBuffer;
  /** [hiddenSize, numHeads·headDim] */
  readonly output: GPUBuffer;
  /** f32 [hiddenSize] */
  readonly postAttentionNorm: GPUBuffer;
  readonly ffn:
    | { readonly kind: "dense"; readonly dense: GpuFfnWeights }
    | {
        readonly kind: "moe";
        /** f32 [gateStride, hiddenSize]: the experts' rows, the shared expert's gate, zeros */
        readonly gate: GPUBuffer;
        readonly shared?: GpuFfnWeights;
      };
}

/** A model's weights on one device. */
export interface GpuWeights {
  /** f32 [maxModelLen, rope.dim/2, 2] (cos, sin) */
  readonly rope: GPUBuffer;
  /** [vocabSize, hiddenSize] */
  readonly embedding: GPUBuffer;
  /** [vocabSize rounded up to whole vec4, hiddenSize] */
  readonly lmHead: GPUBuffer;
  /** f32 [hiddenSize] */
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
  const whole = await readModelWeights(checkpoint);
  const embedding = uploadWeights(gpu, "embedding", [padRows(whole.embedding)], weights);
  const tied = whole.lmHead === whole.embedding;
  const lmHead = tied ? embedding : uploadWeights(gpu, "lm_head", [padRows(whole.lmHead)], weights);
  const finalNorm = uploadVectors(gpu, "final norm", [whole.finalNorm]);
  const layers: GpuLayerWeights[] = [];
  for (let layer = 0; layer < config.numLayers; layer++) {
    const of = await readLayer(checkpoint, layer);
    layers.push(uploadLayer(gpu, `layer ${layer}`, of, weights));
    options.onProgress?.(layer + 1, config.numLayers);
  }
  return { rope, embedding, lmHead, finalNorm, layers };
}

function uploadLayer(
  gpu: Gpu,
  at: string,
  of: LayerWeights,
  weights: WeightsDtype,
): GpuLayerWeights {
  const { q, k, v, o } = headsWeights(of);
  const qkv = [q.weight, k.weight, v.weight];
  return {
    inputNorm: uploadVectors(gpu, `${at} input norm`, [of.inputNorm]),
    qkv: uploadWeights(gpu, `${at} q, k and v`, qkv, weights),
    qkvBias: uploadVectors(gpu, `${at} q, k and v bias`, [q, k, v].map(biasOf)),
    output: uploadWeights(gpu, `${at} attention output`, [o.weight], weights),
    postAttentionNorm: uploadVectors(gpu, `${at} post-attention norm`, [of.postAttentionNorm]),
    ffn: uploadLayerFfn(gpu, at, of.ffn, weights),
  };
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
  if (ffn.shared !== undefined && ffn.shared.gate === undefined) {
    throw new UnsupportedModelError(`${at}: a shared expert without a gate is not supported`);
  }
  const [numExperts, hiddenSize] = ffn.gate.weight.shape;
  const padding = gateStride(numExperts) - numExperts - 1;
  const rows = [
    ffn.gate.weight,
    ffn.shared?.gate ?? zeros(hiddenSize),
    zeros(padding * hiddenSize),
  ];
  return {
    kind: "moe",
    gate: uploadVectors(gpu, `${at} gate`, rows),
    shared: ffn.shared && uploadFfn(gpu, `${at} shared`, ffn.shared.expert, weights),
  };
}

function uploadFfn(
  gpu: Gpu,
  at: string,
  { gate, up, down }: ExpertWeights,
  weights: WeightsDtype,
): GpuFfnWeights {
  return {
    gateUp: uploadWeights(gpu, `${at} gate and up`, [gate, up], weights),
    down: uploadWeights(gpu, `${at} down`, [down], weights),
  };
}

function headsWeights({ attention }: LayerWeights): HeadsWeights {
  if (attention.kind === "heads") return attention;
  throw new UnsupportedModelError("latent attention is not supported");
}

/** The matrix with zero rows added up to whole vec4 of rows. */
function padRows(matrix: HostTensor): HostTensor {
  const [rows, columns] = matrix.shape;
  const padded = Math.ceil(rows / 4) * 4;
  if (padded === rows) return matrix;
  const bytes = new Uint8Array((matrix.bytes.length / rows) * padded);
  bytes.set(matrix.bytes);
  return { ...matrix, shape: [padded, columns], bytes };
}

function biasOf({ weight, bias }: Projection): HostTensor {
  return bias ?? zeros(weight.shape[0]);
}

function zeros(length: number): HostTensor {
  return { shape: [length], dtype: "F32", bytes: new Uint8Array(length * 4) };
}
