/** The kernels of a model's layers on the router's GPU, compiled once for any number of step buffers. */

import type { WeightsDtype } from "../../../core/expert-device.ts";
import type { Gpu } from "../../../core/gpu/device.ts";
import { compileKernel, type CompiledKernel, type Kernel } from "../../../core/gpu/kernel.ts";
import { add } from "../../../core/gpu/kernels/add.ts";
import { addNorm } from "../../../core/gpu/kernels/add-norm.ts";
import type { StepSizes } from "../../../core/gpu/kernels/counts.ts";
import { embed } from "../../../core/gpu/kernels/embed.ts";
import { follow } from "../../../core/gpu/kernels/follow.ts";
import { gate } from "../../../core/gpu/kernels/gate.ts";
import { rmsNorm } from "../../../core/gpu/kernels/rms-norm.ts";
import { rmsNormRound } from "../../../core/gpu/kernels/rms-norm-round.ts";
import { topCandidates } from "../../../core/gpu/kernels/top-candidates.ts";
import { matrixSlices } from "../../../core/gpu/matrix.ts";
import type { ProductChoice } from "../../../core/gpu/products.ts";
import { compileLinear } from "../../../core/gpu/sliced-linear.ts";
import type { ModelConfig } from "../../../core/model/config.ts";
import type { WireSetting } from "../../../core/wire-rows.ts";
import type { AttentionBlocks } from "./gpu-attention.ts";
import { compileFfn } from "./gpu-ffn.ts";
import { compileHeads } from "./gpu-heads.ts";
import { compileLatent } from "./gpu-latent.ts";
import { MAX_CANDIDATES } from "../model-runner.ts";
import { logitStride } from "./step-buffers.ts";

type Step = StepSizes;

/** The model's kernels. */
export type GpuKernels = Awaited<ReturnType<typeof compileModelKernels>>;

/** Compiles every kernel that the model needs. Rejects with KernelError. */
export async function compileModelKernels(
  gpu: Gpu,
  choice: ProductChoice,
  config: ModelConfig,
  weights: WeightsDtype,
  wire: WireSetting,
  blocks: AttentionBlocks,
) {
  const { hiddenSize, rmsNormEps: eps, vocabSize, numExperts, multipliers } = config;
  const { denseIntermediateSize, sharedExpert } = config;
  const compile = (kernel: Kernel<Step>) => compileKernel(gpu, kernel);
  const factor = multipliers.residual;
  const ffn = (width: number, epilogue: "add" | "addScaled") =>
    compileFfn(gpu, choice, { hiddenSize, width, weights, epilogue, factor });
  const embeds: CompiledKernel<Step>[] = [];
  for (const slice of matrixSlices(gpu, vocabSize, hiddenSize, weights)) {
    embeds.push(
      await compile(embed({ hiddenSize, weights, slice, factor: multipliers.embedding })),
    );
  }
  return {
    follow: await compile(follow({ vocabSize, maxCandidates: MAX_CANDIDATES })),
    /** One per slice of the embedding. */
    embed: embeds,
    norm: await compile(rmsNorm({ hiddenSize, eps, rows: "tokens" })),
    normRound:
      wire === "f32"
        ? await compile(rmsNorm({ hiddenSize, eps, rows: "tokens" }))
        : await compile(rmsNormRound({ hiddenSize, eps, wire })),
    attention: await compileAnyAttention(gpu, choice, config, weights, blocks),
    gateLogits: await compileLinear(gpu, choice, {
      k: hiddenSize,
      n: numExperts + 1,
      weights: "f32",
      epilogue: "store",
      rows: "tokens",
    }),
    gate: await compile(gate({ ...config.gate, numExperts, topK: config.numExpertsPerToken })),
    dense: denseIntermediateSize > 0 ? await ffn(denseIntermediateSize, "add") : undefined,
    shared:
      sharedExpert &&
      (await ffn(sharedExpert.intermediateSize, sharedExpert.gated ? "addScaled" : "add")),
    sharedIsGated: sharedExpert?.gated ?? false,
    /** The routed experts' sums: at the end of the model, and before another layer. */
    add: await compile(add(hiddenSize, factor)),
    addNorm: await compile(addNorm({ hiddenSize, eps, factor })),
    finalNorm: await compile(rmsNorm({ hiddenSize, eps, rows: "samples" })),
    lmHead: await compileLinear(gpu, choice, {
      k: hiddenSize,
      n: vocabSize,
      weights,
      epilogue: "store",
      rows: "samples",
    }),
    candidates: await compile(
      topCandidates({ vocabSize, rowStride: logitStride(config), maxCandidates: MAX_CANDIDATES }),
    ),
  };
}

function compileAnyAttention(
  gpu: Gpu,
  choice: ProductChoice,
  config: ModelConfig,
  weights: WeightsDtype,
  blocks: AttentionBlocks,
) {
  const { attention } = config;
  return attention.kind === "heads"
    ? compileHeads(gpu, choice, config, attention, weights, blocks)
    : compileLatent(gpu, choice, config, attention, weights, blocks);
}
