/** A model's kernels bound to its weights and to the buffers of a step: the stages of a step. */

import type { BoundKernel, CompiledKernel } from "../../core/gpu/kernel.ts";
import type { StepSizes } from "../../core/gpu/kernels/counts.ts";
import type { WireSetting } from "../../core/wire.ts";
import type { ByRows, GpuKernels } from "./gpu-kernels.ts";
import type { GpuFfnWeights, GpuLayerWeights, GpuWeights } from "./gpu-weights.ts";
import type { StepBuffers } from "./step-buffers.ts";

/** Kernels that are encoded one after the other. */
export type Stage = (pass: GPUComputePassEncoder, sizes: StepSizes) => void;

/** A decoder layer in stages. */
export interface GpuLayer {
  /** Norm, attention and residual; then, in an MoE layer, the norm before the experts and the gate. */
  readonly attention: Stage;
  /** Dense FFN, or the shared expert: added to the hidden states. */
  readonly ffn: Stage;
  /** Adds the routed experts' sums to the hidden states. */
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
    embed: stage([k.embed.bind(counts, b.input("tokenIds"), weights.embedding, b.hidden)]),
    layers: weights.layers.map((of, layer) => bindLayer(parts, b, of, layer)),
    sample: stage([
      k.finalNorm.bind(counts, b.hidden, weights.finalNorm, b.sampled, b.input("sampleRows")),
      byRows(
        k.lmHead,
        (kernel) => kernel.bind(counts, b.sampled, weights.lmHead, b.logits),
        "samples",
      ),
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
  const attend = [
    k.norm.bind(counts, b.hidden, of.inputNorm, b.normed),
    byRows(k.qkv, (kernel) =>
      kernel.bind(
        counts,
        b.normed,
        of.qkv,
        of.qkvBias,
        weights.rope,
        b.input("positions"),
        b.input("cacheSlots"),
        b.query,
        cache,
      ),
    ),
    k.attention.bind(
      counts,
      b.query,
      cache,
      b.input("positions"),
      b.input("sequenceRows"),
      b.input("blockTables"),
      b.attended,
    ),
    byRows(k.output, (kernel) => kernel.bind(counts, b.attended, of.output, b.hidden)),
    wire === "f16" && of.ffn.kind === "moe"
      ? k.normRound.bind(counts, b.hidden, of.postAttentionNorm, b.normed, b.rounded)
      : k.norm.bind(counts, b.hidden, of.postAttentionNorm, b.normed),
  ];
  if (of.ffn.kind === "dense") {
    const { dense } = of.ffn;
    return { attention: stage(attend), ffn: stage(denseFfn(k, b, dense)), addSums: stage([]) };
  }
  const { gate, shared } = of.ffn;
  const choose = [
    byRows(k.gateLogits, (kernel) => kernel.bind(counts, b.normed, gate, b.gateLogits)),
    k.gate.bind(counts, b.gateLogits, b.routingOf(layer), b.sharedGate),
  ];
  return {
    attention: stage([...attend, ...choose]),
    ffn: stage(shared === undefined ? [] : sharedFfn(k, b, shared)),
    addSums: stage([k.add.bind(counts, b.sums, b.hidden)]),
  };
}

function denseFfn(k: GpuKernels, b: StepBuffers, ffn: GpuFfnWeights): BoundKernel<Step>[] {
  return [
    byRows(k.denseGateUp, (kernel) => kernel.bind(b.counts, b.normed, ffn.gateUp, b.inner)),
    byRows(k.denseDown, (kernel) => kernel.bind(b.counts, b.inner, ffn.down, b.hidden)),
  ];
}

function sharedFfn(k: GpuKernels, b: StepBuffers, ffn: GpuFfnWeights): BoundKernel<Step>[] {
  return [
    byRows(k.sharedGateUp, (kernel) => kernel.bind(b.counts, b.normed, ffn.gateUp, b.inner)),
    byRows(k.sharedDown, (kernel) =>
      kernel.bind(b.counts, b.inner, ffn.down, b.hidden, b.sharedGate),
    ),
  ];
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
