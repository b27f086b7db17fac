/** The kernels of a model's layers on the router's GPU, compiled once for any number of step buffers. */

import type { WeightsDtype } from "../../core/expert-device.ts";
import type { Gpu } from "../../core/gpu/device.ts";
import { compileKernel, type CompiledKernel, type Kernel } from "../../core/gpu/kernel.ts";
import { add } from "../../core/gpu/kernels/add.ts";
import { attention } from "../../core/gpu/kernels/attention.ts";
import type { StepSizes } from "../../core/gpu/kernels/counts.ts";
import { embed } from "../../core/gpu/kernels/embed.ts";
import { follow } from "../../core/gpu/kernels/follow.ts";
import { gate, gateStride } from "../../core/gpu/kernels/gate.ts";
import { gateUp } from "../../core/gpu/kernels/gate-up.ts";
import { linear, type LinearOptions } from "../../core/gpu/kernels/linear.ts";
import { qkvRope } from "../../core/gpu/kernels/qkv-rope.ts";
import { rmsNorm } from "../../core/gpu/kernels/rms-norm.ts";
import { rmsNormRound } from "../../core/gpu/kernels/rms-norm-round.ts";
import { topCandidates } from "../../core/gpu/kernels/top-candidates.ts";
import type { ModelConfig } from "../../core/model/config.ts";
import type { WireSetting } from "../../core/wire.ts";
import { BLOCK_SIZE, MAX_CANDIDATES } from "./model-runner.ts";
import { logitStride } from "./step-buffers.ts";
import { headsOf } from "./supported.ts";

type Step = StepSizes;

/** The model's kernels. */
export type GpuKernels = Awaited<ReturnType<typeof compileModelKernels>>;

/** A kernel for one row at a time, and one for four. */
export type ByRows = readonly [CompiledKernel<Step>, CompiledKernel<Step>];

/** Compiles every kernel that the model needs. Rejects with KernelError. */
export async function compileModelKernels(
  gpu: Gpu,
  config: ModelConfig,
  weights: WeightsDtype,
  wire: WireSetting,
  blocksPerSequence: number,
) {
  const { hiddenSize, rmsNormEps: eps, vocabSize, numExperts } = config;
  const { numHeads, numKvHeads, headDim } = headsOf(config);
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
  const shared = Math.max(8, config.sharedExpert?.intermediateSize ?? 0);
  return {
    follow: await compile(follow({ vocabSize, maxCandidates: MAX_CANDIDATES })),
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
      gate({ numExperts, topK: config.numExpertsPerToken, normTopkProb: config.gate.normTopkProb }),
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
