/** A model's weights on the router's GPU and the kernels of its layers, bound to the step's buffers. */

import type { WeightsDtype } from "../../core/expert-device.ts";
import { ropeTable } from "../../core/cpu/operations.ts";
import type { Checkpoint } from "../../core/model/checkpoint.ts";
import type { ModelConfig } from "../../core/model/config.ts";
import { type LayerFfn, readLayer, readModelWeights } from "../../core/model/weights.ts";
import { type Gpu, upload } from "../../core/gpu/device.ts";
import {
  type BoundKernel,
  compileKernel,
  type CompiledKernel,
  type Kernel,
} from "../../core/gpu/kernel.ts";
import { add } from "../../core/gpu/kernels/add.ts";
import { attention } from "../../core/gpu/kernels/attention.ts";
import type { StepSizes } from "../../core/gpu/kernels/counts.ts";
import { embed } from "../../core/gpu/kernels/embed.ts";
import { gate, gateStride } from "../../core/gpu/kernels/gate.ts";
import { gateUp } from "../../core/gpu/kernels/gate-up.ts";
import { linear, type LinearOptions } from "../../core/gpu/kernels/linear.ts";
import { qkvRope } from "../../core/gpu/kernels/qkv-rope.ts";
import { rmsNorm } from "../../core/gpu/kernels/rms-norm.ts";
import { rmsNormRound } from "../../core/gpu/kernels/rms-norm-round.ts";
import { topCandidates } from "../../core/gpu/kernels/top-candidates.ts";
import { uploadVectors, uploadWeights } from "../../core/gpu/weights.ts";
import type { HostTensor } from "../../core/tensor.ts";
import type { WireSetting } from "../../core/wire.ts";
import { BLOCK_SIZE, MAX_CANDIDATES } from "./model-runner.ts";
import type { RunnerLimits } from "./runner-limits.ts";
import { logitStride, type StepBuffers } from "./step-buffers.ts";

/** What a model is made of on a GPU. */
export interface GpuModelOptions {
  readonly checkpoint: Checkpoint;
  readonly weights: WeightsDtype;
  readonly wire: WireSetting;
  readonly limits: RunnerLimits;
  /** Called after each layer that was loaded. */
  readonly onProgress?: (loaded: number, total: number) => void;
}

/** Kernels that are encoded one after the other. */
export type Stage = (pass: GPUComputePassEncoder, sizes: StepSizes) => void;

/** A decoder layer in stages. */
export interface GpuLayer {
  /** Norm, attention and residual; then, in an MoE layer, the norm before the experts and the gate. */
  readonly attention: Stage;
  /** Dense FFN, or the gated shared expert: added to the hidden states. */
  readonly ffn: Stage;
  /** Adds the routed experts' sums to the hidden states. */
  readonly addSums: Stage;
}

/** The model's stages, in the order of a step. */
export interface GpuModel {
  readonly embed: Stage;
  readonly layers: readonly GpuLayer[];
  /** Final norm, logits and candidates of the sampled rows. */
  readonly sample: Stage;
}

type Step = StepSizes;

/** Loads the weights that every router holds and compiles the kernels. Rejects with KernelError, OutOfDeviceMemoryError, WeightOverflowError. */
export async function loadGpuModel(
  gpu: Gpu,
  buffers: StepBuffers,
  options: GpuModelOptions,
): Promise<GpuModel> {
  const { checkpoint, weights, wire, limits } = options;
  const { config } = checkpoint;
  const k = await compileKernels(gpu, config, weights, wire, buffers.blocksPerSequence);
  const b = buffers;
  const { counts } = b;
  const rope = upload(
    gpu,
    "rotary table",
    ropeTable(limits.maxModelLen, config.headDim, config.ropeTheta),
  );
  const whole = await readModelWeights(checkpoint);
  const embedding = uploadWeights(gpu, "embedding", [padRows(whole.embedding)], weights);
  const tied = whole.lmHead === whole.embedding;
  const lmHead = tied ? embedding : uploadWeights(gpu, "lm_head", [padRows(whole.lmHead)], weights);
  const finalNorm = uploadVectors(gpu, "final norm", [whole.finalNorm]);

  const layers: GpuLayer[] = [];
  for (let layer = 0; layer < config.numLayers; layer++) {
    const of = await readLayer(checkpoint, layer);
    const at = (part: string) => `layer ${layer} ${part}`;
    const qkv = uploadWeights(
      gpu,
      at("q, k and v"),
      [of.q.weight, of.k.weight, of.v.weight],
      weights,
    );
    const bias = uploadVectors(gpu, at("q, k and v bias"), [of.q, of.k, of.v].map(biasOf));
    const output = uploadWeights(gpu, at("attention output"), [of.o], weights);
    const inputNorm = uploadVectors(gpu, at("input norm"), [of.inputNorm]);
    const ffnNorm = uploadVectors(gpu, at("post-attention norm"), [of.postAttentionNorm]);
    const project = byRows(k.qkv, (kernel) =>
      kernel.bind(
        counts,
        b.normed,
        qkv,
        bias,
        rope,
        b.input("positions"),
        b.input("cacheSlots"),
        b.query,
        b.caches[layer],
      ),
    );
    const attend = [
      k.norm.bind(counts, b.hidden, inputNorm, b.normed),
      project,
      k.attention.bind(
        counts,
        b.query,
        b.caches[layer],
        b.input("positions"),
        b.input("sequenceRows"),
        b.input("blockTables"),
        b.attended,
      ),
      byRows(k.output, (kernel) => kernel.bind(counts, b.attended, output, b.hidden)),
      wire === "f16" && of.ffn.kind === "moe"
        ? k.normRound.bind(counts, b.hidden, ffnNorm, b.normed, b.rounded)
        : k.norm.bind(counts, b.hidden, ffnNorm, b.normed),
    ];
    layers.push(
      of.ffn.kind === "dense"
        ? { attention: stage(attend), ffn: denseStage(of.ffn.dense, at), addSums: stage([]) }
        : {
            attention: stage([...attend, ...gateStage(of.ffn, layer)]),
            ffn: of.ffn.shared === undefined ? stage([]) : sharedStage(of.ffn.shared.expert, at),
            addSums: stage([k.add.bind(counts, b.sums, b.hidden)]),
          },
    );
    options.onProgress?.(layer + 1, config.numLayers);
  }

  function gateStage(ffn: Extract<LayerFfn, { kind: "moe" }>, layer: number): BoundKernel<Step>[] {
    const shared = ffn.shared?.gate ?? zeroRow(config.hiddenSize);
    const padding = gateStride(config.numExperts) - config.numExperts - 1;
    const gates = uploadVectors(gpu, `layer ${layer} gate`, [
      ffn.gate,
      shared,
      zeroRow(padding * config.hiddenSize),
    ]);
    return [
      byRows(k.gateLogits, (kernel) => kernel.bind(counts, b.normed, gates, b.gateLogits)),
      k.gate.bind(counts, b.gateLogits, b.routingOf(layer), b.sharedGate),
    ];
  }

  function denseStage(
    ffn: { gate: HostTensor; up: HostTensor; down: HostTensor },
    at: (part: string) => string,
  ): Stage {
    const both = uploadWeights(gpu, at("gate and up"), [ffn.gate, ffn.up], weights);
    const down = uploadWeights(gpu, at("down"), [ffn.down], weights);
    return stage([
      byRows(k.denseGateUp, (kernel) => kernel.bind(counts, b.normed, both, b.inner)),
      byRows(k.denseDown, (kernel) => kernel.bind(counts, b.inner, down, b.hidden)),
    ]);
  }

  function sharedStage(
    ffn: { gate: HostTensor; up: HostTensor; down: HostTensor },
    at: (part: string) => string,
  ): Stage {
    const both = uploadWeights(gpu, at("shared gate and up"), [ffn.gate, ffn.up], weights);
    const down = uploadWeights(gpu, at("shared down"), [ffn.down], weights);
    return stage([
      byRows(k.sharedGateUp, (kernel) => kernel.bind(counts, b.normed, both, b.inner)),
      byRows(k.sharedDown, (kernel) => kernel.bind(counts, b.inner, down, b.hidden, b.sharedGate)),
    ]);
  }

  return {
    embed: stage([k.embed.bind(counts, b.input("tokenIds"), embedding, b.hidden)]),
    layers,
    sample: stage([
      k.finalNorm.bind(counts, b.hidden, finalNorm, b.sampled, b.input("sampleRows")),
      byRows(k.lmHead, (kernel) => kernel.bind(counts, b.sampled, lmHead, b.logits), "samples"),
      k.candidates.bind(counts, b.logits, b.input("wanted"), b.candidates),
    ]),
  };
}

/** A kernel for one row at a time, and one for four. */
type ByRows = readonly [CompiledKernel<Step>, CompiledKernel<Step>];

async function compileKernels(
  gpu: Gpu,
  config: ModelConfig,
  weights: WeightsDtype,
  wire: WireSetting,
  blocksPerSequence: number,
) {
  const {
    hiddenSize,
    numHeads,
    numKvHeads,
    headDim,
    rmsNormEps: eps,
    vocabSize,
    numExperts,
  } = config;
  const heads = { numHeads, numKvHeads, headDim, blockSize: BLOCK_SIZE, blocksPerSequence };
  const compile = (kernel: Kernel<Step>) => compileKernel(gpu, kernel);
  const byBoth = async (make: (rows: 1 | 4) => Kernel<Step>): Promise<ByRows> => [
    await compile(make(1)),
    await compile(make(4)),
  ];
  const linearOf = (
    k: number,
    n: number,
    epilogue: LinearOptions["epilogue"],
    kind: "tokens" | "samples" = "tokens",
  ) => byBoth((rows) => linear({ k, n, weights, lookup: { kind, rows }, epilogue }));
  const gateUpOf = (intermediateSize: number) =>
    byBoth((rows) =>
      gateUp({ hiddenSize, intermediateSize, weights, lookup: { kind: "tokens", rows } }),
    );
  const dense = Math.max(8, config.denseIntermediateSize);
  const shared = Math.max(8, config.sharedExpertIntermediateSize);
  return {
    embed: await compile(embed({ hiddenSize, weights })),
    norm: await compile(rmsNorm({ hiddenSize, eps, rows: "tokens" })),
    normRound:
      wire === "f16"
        ? await compile(rmsNormRound({ hiddenSize, eps }))
        : await compile(rmsNorm({ hiddenSize, eps, rows: "tokens" })),
    qkv: await byBoth((rows) =>
      qkvRope({ hiddenSize, numHeads, numKvHeads, headDim, weights, rows }),
    ),
    attention: await compile(attention(heads)),
    output: await linearOf(numHeads * headDim, hiddenSize, "add"),
    gateLogits: await byBoth((rows) =>
      // The gate stays in f32 whatever the cluster's dtype: it is small, and its rounding would move tokens.
      linear({
        k: hiddenSize,
        n: gateStride(numExperts),
        weights: "f32",
        lookup: { kind: "tokens", rows },
        epilogue: "store",
      }),
    ),
    gate: await compile(
      gate({ numExperts, topK: config.numExpertsPerToken, normTopkProb: config.normTopkProb }),
    ),
    denseGateUp: await gateUpOf(dense),
    denseDown: await linearOf(dense, hiddenSize, "add"),
    sharedGateUp: await gateUpOf(shared),
    sharedDown: await linearOf(shared, hiddenSize, "addScaled"),
    add: await compile(add(hiddenSize)),
    finalNorm: await compile(rmsNorm({ hiddenSize, eps, rows: "samples" })),
    lmHead: await linearOf(hiddenSize, logitStride(config), "store", "samples"),
    candidates: await compile(
      topCandidates({ vocabSize, rowStride: logitStride(config), maxCandidates: MAX_CANDIDATES }),
    ),
  };
}

function stage(kernels: readonly BoundKernel<Step>[]): Stage {
  return (pass, sizes) => {
    for (const kernel of kernels) kernel.encode(pass, sizes);
  };
}

/** One row at a time where there is one, else four. */
function byRows(
  [one, four]: ByRows,
  bind: (kernel: CompiledKernel<Step>) => BoundKernel<Step>,
  rows: "tokens" | "samples" = "tokens",
): BoundKernel<Step> {
  const single = bind(one);
  const several = bind(four);
  return { encode: (pass, sizes) => (sizes[rows] === 1 ? single : several).encode(pass, sizes) };
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

function biasOf(projection: {
  readonly weight: HostTensor;
  readonly bias?: HostTensor;
}): HostTensor {
  return projection.bias ?? zeroRow(projection.weight.shape[0]);
}

function zeroRow(length: number): HostTensor {
  return { shape: [length], dtype: "F32", bytes: new Uint8Array(length * 4) };
}
