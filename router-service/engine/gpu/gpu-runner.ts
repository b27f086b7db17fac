/** Runs the model's layers on the router's GPU: one submission and one read-back per step, more only where experts are remote. */

import { inTime } from "../../../core/gpu/deadline.ts";
import type { Gpu } from "../../../core/gpu/device.ts";
import type { ExpertBuffers } from "../../../core/gpu/expert-ffn.ts";
import { GROUPED_FROM } from "../../../core/gpu/expert-kernels.ts";
import { type ProductChoice, productsFor } from "../../../core/gpu/products.ts";
import type { WeightsDtype } from "../../../core/expert-device.ts";
import type { Checkpoint } from "../../../core/model/checkpoint/checkpoint.ts";
import type { WireSetting } from "../../../core/wire-rows.ts";
import { attentionFor, type AttentionKernels } from "./gpu-attention.ts";
import { compileModelKernels } from "./gpu-kernels.ts";
import { GpuLane } from "./gpu-lane.ts";
import { loadGpuWeights } from "./gpu-weights.ts";
import { chooseMicroBatches, type MicroBatchTimes, noteStep } from "../micro-batch-choice.ts";
import { mergeResults, type MicroBatchSetting, splitBatch } from "../micro-batches.ts";
import {
  BLOCK_SIZE,
  type ModelRunner,
  type StepBatch,
  type StepContext,
  type StepResult,
} from "../model-runner.ts";
import type { RunExperts } from "../run-experts.ts";
import { checkBatch, type RunnerLimits, secondHalfLimits } from "../runner-limits.ts";
import { allocateCaches } from "./step-buffers.ts";
import { runInTurns } from "../turns.ts";

/** What a runner on the GPU is made of. */
export interface GpuRunnerOptions {
  readonly checkpoint: Checkpoint;
  readonly weights: WeightsDtype;
  readonly wire: WireSetting;
  readonly limits: RunnerLimits;
  /** How products with the router's own matrices are computed; absent: as is good for adapters of this one's kind. */
  readonly products?: ProductChoice;
  /** Likewise for attention. */
  readonly attention?: AttentionKernels;
  /** Called after each layer that was loaded. */
  readonly onProgress?: (loaded: number, total: number) => void;
  /** Called before the first of the first steps, in which the driver compiles kernels, and after each. */
  readonly onFirstStep?: (done: number, total: number) => void;
  /** Local experts work on the runner's buffers and are made over them. */
  readonly experts:
    | { readonly kind: "local"; readonly create: (buffers: ExpertBuffers) => Promise<RunExperts> }
    | {
        readonly kind: "remote";
        readonly runExperts: RunExperts;
        readonly microBatches: MicroBatchSetting;
      };
}

/** Loads a model onto a GPU; the device stays the caller's. Rejects with KernelError, OutOfDeviceMemoryError, WeightOverflowError. */
export async function createGpuRunner(gpu: Gpu, options: GpuRunnerOptions): Promise<ModelRunner> {
  const { checkpoint, limits, weights, wire, onProgress, experts } = options;
  const { products = productsFor(gpu), attention = attentionFor(gpu) } = options;
  const { config } = checkpoint;
  const { maxModelLen } = limits;
  const caches = allocateCaches(gpu, config, limits);
  const blocks = {
    blockSize: BLOCK_SIZE,
    blocksPerSequence: Math.ceil(maxModelLen / BLOCK_SIZE),
    kernels: attention,
  };
  const parts = {
    kernels: await compileModelKernels(gpu, products, config, weights, wire, blocks),
    weights: await loadGpuWeights(gpu, { checkpoint, weights, maxModelLen, onProgress }),
    caches,
    wire,
  };
  const lane = new GpuLane(gpu, config, limits, parts);
  const lanes = [lane];
  if (experts.kind === "remote" && experts.microBatches !== "1" && limits.maxTokens > 1) {
    lanes.push(new GpuLane(gpu, config, secondHalfLimits(limits), parts));
  }
  const { buffers } = lane;
  const runExperts =
    experts.kind === "remote"
      ? experts.runExperts
      : await experts.create({
          counts: buffers.counts,
          rows: wire === "f32" ? buffers.normed : buffers.rounded,
          routing: buffers.routingOf,
          sums: buffers.sums,
          maxPairs: limits.maxTokens * config.numExpertsPerToken,
        });
  const runner = new GpuRunner(gpu, options, lanes, caches, runExperts);
  await runner.warmUp();
  return runner;
}

class GpuRunner implements ModelRunner {
  readonly adapter: string;
  readonly runsAhead: boolean;
  readonly maxTokens: number;
  readonly maxSequences: number;
  readonly maxSamples: number;
  readonly numBlocks: number;
  readonly lost: Promise<string>;
  readonly #options: GpuRunnerOptions;
  readonly #lanes: readonly GpuLane[];
  readonly #caches: readonly GPUBuffer[];
  readonly #runExperts: RunExperts;
  #times: MicroBatchTimes = new Map();

  constructor(
    gpu: Gpu,
    options: GpuRunnerOptions,
    lanes: readonly GpuLane[],
    caches: readonly GPUBuffer[],
    runExperts: RunExperts,
  ) {
    this.adapter = gpu.adapter;
    // Where experts are remote a step comes back to the host between layers.
    this.runsAhead = options.experts.kind === "local";
    this.lost = gpu.lost;
    this.maxTokens = options.limits.maxTokens;
    this.maxSequences = options.limits.maxSequences;
    this.maxSamples = options.limits.maxSamples;
    this.numBlocks = options.limits.numBlocks;
    this.#options = options;
    this.#lanes = lanes;
    this.#caches = caches;
    this.#runExperts = runExperts;
  }

  /** Runs steps of all shapes over the still empty cache: drivers compile at the first run, which a request must not wait for. */
  async warmUp(): Promise<void> {
    const { limits, experts, checkpoint, onFirstStep } = this.#options;
    const { numExperts, numExpertsPerToken, hiddenSize } = checkpoint.config;
    const grouped = Math.ceil((GROUPED_FROM * numExperts) / numExpertsPerToken);
    const sizes = [1, grouped];
    onFirstStep?.(0, sizes.length);
    for (const [done, wanted] of sizes.entries()) {
      const tokens = Math.min(
        wanted,
        limits.maxTokens,
        limits.maxModelLen,
        limits.numBlocks * BLOCK_SIZE,
      );
      const indices = Uint32Array.from({ length: tokens }, (_, i) => i);
      const blocks = Array.from({ length: Math.ceil(tokens / BLOCK_SIZE) }, (_, i) => i);
      const samples = Array.from(
        indices.subarray(0, Math.min(tokens, 2, limits.maxSamples)),
        (token) => ({
          token,
          numCandidates: 1,
          fullLogits: false,
        }),
      );
      const batch: StepBatch = {
        tokenIds: new Uint32Array(tokens),
        follows: true,
        positions: indices,
        sequenceRows: new Uint32Array(tokens),
        blockTables: [blocks],
        samples,
      };
      const noExperts: RunExperts = () => ({
        kind: "host",
        values: new Float32Array(tokens * hiddenSize),
      });
      const runExperts = experts.kind === "local" ? this.#runExperts : noExperts;
      const signal = new AbortController().signal;
      await inTime("a first step", this.#lanes[0].run(batch, { signal }, runExperts));
      onFirstStep?.(done + 1, sizes.length);
    }
  }

  async forward(batch: StepBatch, context: StepContext): Promise<StepResult> {
    checkBatch(batch, this.#options.limits);
    const startedAt = performance.now();
    const numTokens = batch.tokenIds.length;
    const microBatches = this.#microBatches(numTokens);
    const result =
      microBatches === 1
        ? await this.#lanes[0].run(batch, context, this.#runExperts)
        : await this.#forwardInTwo(batch, context);
    this.#times = noteStep(this.#times, numTokens, microBatches, performance.now() - startedAt);
    return result;
  }

  close(): void {
    for (const buffer of this.#caches) buffer.destroy();
    for (const lane of this.#lanes) lane.close();
  }

  #microBatches(numTokens: number): 1 | 2 {
    const { experts } = this.#options;
    if (experts.kind === "local" || this.#lanes.length === 1 || numTokens < 2) return 1;
    return experts.microBatches === "2" ? 2 : chooseMicroBatches(this.#times, numTokens);
  }

  async #forwardInTwo(batch: StepBatch, context: StepContext): Promise<StepResult> {
    const { halves, straddles } = splitBatch(batch);
    const [ahead, behind] = this.#lanes;
    return mergeResults(
      await runInTurns(context.signal, straddles, [
        (signal, order) => ahead.run(halves[0], { ...context, signal }, this.#runExperts, order),
        (signal, order) => behind.run(halves[1], { ...context, signal }, this.#runExperts, order),
      ]),
    );
  }
}
