/** A model's kernels bound to its weights and to the buffers of a step: the stages of a step. */

import type { BoundKernel } from "../../../core/gpu/kernel.ts";
import type { StepSizes } from "../../../core/gpu/kernels/counts.ts";
import type { WireSetting } from "../../../core/wire-rows.ts";
import { bindFfn } from "./gpu-ffn.ts";
import { bindHeads } from "./gpu-heads.ts";
import type { GpuKernels } from "./gpu-kernels.ts";
import { bindLatent } from "./gpu-latent.ts";
import type { GpuLayerWeights, GpuWeights } from "./gpu-weights.ts";
import type { StepBuffers } from "./step-buffers.ts";

/** Kernels that are encoded one after the other. */
export type Stage = (pass: GPUComputePassEncoder, sizes: StepSizes) => void;

/** A decoder layer in stages. */
export interface GpuLayer {
  /** Norm, unless `addSums` of the layer before has done it, attention and residual; then, in an MoE layer, the norm before the experts and the gate. */
  readonly attention: Stage;
  /** Dense FFN, or the shared expert: added to the hidden states. */
  readonly ffn: Stage;
  /** Adds the routed experts' sums to the hidden states, and norms these for the next layer. */
  readonly addSums: Stage;
}

/** The model's stages, in the order of a step. */
export interface GpuModel {
  /** Puts the tokens that the step before has found most likely where embed reads ids. */
  readonly follow: Stage;
  readonly embed: Stage;
  readonly layers: readonly GpuLayer[];
  /** Final norm, logits and candidates of the sampled rows. */
  readonly sample: Stage;
}

type Step = StepSizes;

/** What a model is bound to; weights, kernels and caches may be shared by any number of bindings. */
export interface ModelParts {
  readonly weights: GpuWeights;
  readonly kernels: GpuKernels;
  /** KV cache of each layer. */
  readonly caches: readonly GPUBuffer[];
  readonly wire: WireSetting;
}

/** Binds a model to the buffers of a step. */
export function bindModel(parts: ModelParts, buffers: StepBuffers): GpuModel {
  const { weights, kernels: k } = parts;
  const b = buffers;
  const { counts } = b;
  return {
    follow: stage([k.follow.bind(counts, b.candidates, b.input("tokenIds"))]),
    embed: stage(
      weights.embedding.map(({ buffer }, slice) =>
        k.embed[slice].bind(counts, b.input("tokenIds"), buffer, b.hidden),
      ),
    ),
    layers: weights.layers.map((of, layer) => bindLayer(parts, b, of, layer)),
    sample: stage([
      k.finalNorm.bind(counts, b.hidden, weights.finalNorm, b.sampled, b.input("sampleRows")),
      k.lmHead.bind(counts, b.sampled, weights.lmHead, b.logits),
      k.candidates.bind(counts, b.logits, b.input("wanted"), b.candidates),
    ]),
  };
}

function bindLayer(
  { weights, kernels: k, caches, wire }: ModelParts,
  b: StepBuffers,
  of: GpuLayerWeights,
  layer: number,
): GpuLayer {
  const { counts } = b;
  const cache = caches[layer];
  const before = weights.layers.at(layer - 1);
  const isNormed = layer > 0 && before?.ffn.kind === "moe";
  const attend = [
    ...(isNormed ? [] : [k.norm.bind(counts, b.hidden, of.inputNorm, b.normed)]),
    ...bindAttention(k, of, weights.rope, b, cache, layer),
    wire !== "f32" && of.ffn.kind === "moe"
      ? k.normRound.bind(counts, b.hidden, of.postAttentionNorm, b.normed, b.rounded)
      : k.norm.bind(counts, b.hidden, of.postAttentionNorm, b.normed),
  ];
  if (of.ffn.kind === "dense") {
    if (k.dense === undefined) throw new TypeError(`layer ${layer}: no dense FFN was compiled`);
    const dense = bindFfn(k.dense, of.ffn.dense, b);
    return { attention: stage(attend), ffn: stage(dense), addSums: stage([]) };
  }
  const { gate, gateTerms, shared } = of.ffn;
  const terms = gateTerms === undefined ? [] : [gateTerms];
  const choose = [
    k.gateLogits.bind(counts, b.normed, gate, b.gateLogits),
    k.gate.bind(counts, b.gateLogits, b.routingOf(layer), b.sharedGate, ...terms),
  ];
  const next = weights.layers.at(layer + 1);
  const scale = k.sharedIsGated ? b.sharedGate : undefined;
  return {
    attention: stage([...attend, ...choose]),
    ffn: stage(k.shared && shared ? bindFfn(k.shared, shared, b, scale) : []),
    addSums: stage([
      next === undefined
        ? k.add.bind(counts, b.sums, b.hidden)
        : k.addNorm.bind(counts, b.sums, b.hidden, next.inputNorm, b.normed),
    ]),
  };
}

function bindAttention(
  { attention }: GpuKernels,
  of: GpuLayerWeights,
  rope: GPUBuffer,
  b: StepBuffers,
  cache: GPUBuffer,
  layer: number,
): BoundKernel<Step>[] {
  if (attention.kind === "heads" && of.attention.kind === "heads") {
    return bindHeads(attention, of.attention, rope, b, cache, layer);
  }
  if (attention.kind === "latent" && of.attention.kind === "latent") {
    return bindLatent(attention, of.attention, rope, b, cache, layer);
  }
  throw new TypeError(`layer ${layer}: kernels for attention of another kind than its weights`);
}

function stage(kernels: readonly BoundKernel<Step>[]): Stage {
  return (pass, sizes) => {
    for (const kernel of kernels) kernel.encode(pass, sizes);
  };
}
