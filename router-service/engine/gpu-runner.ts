/** Runs the model's layers on the router's GPU: one submission and one read-back per step, more only where experts are remote. */

import type { Gpu } from "../../core/gpu/device.ts";
import { type ExpertBuffers, GROUPED_FROM } from "../../core/gpu/expert-ffn.ts";
import type { StepSizes } from "../../core/gpu/kernels/counts.ts";
import { moeLayers } from "../../core/model/config.ts";
import type { WeightsDtype } from "../../core/expert-device.ts";
import type { Checkpoint } from "../../core/model/checkpoint.ts";
import type { WireSetting } from "../../core/wire.ts";
import { compileModelKernels } from "./gpu-kernels.ts";
import { bindModel, type GpuModel } from "./gpu-model.ts";
import { loadGpuWeights } from "./gpu-weights.ts";
import { GpuStep } from "./gpu-step.ts";
import {
  BLOCK_SIZE,
  type ModelRunner,
  type StepBatch,
  type StepContext,
  type StepResult,
} from "./model-runner.ts";
import type { RunExperts } from "./run-experts.ts";
import { checkBatch, type RunnerLimits } from "./runner-limits.ts";
import {
  allocateCaches,
  allocateStepBuffers,
  type StepBuffers,
  writeInputs,
} from "./step-buffers.ts";
import { encodeResults, readResults } from "./step-results.ts";

/** What a runner on the GPU is made of. */
export interface GpuRunnerOptions {
  readonly checkpoint: Checkpoint;
  readonly weights: WeightsDtype;
  readonly wire: WireSetting;
  readonly limits: RunnerLimits;
  /** Called after each layer that was loaded. */
  readonly onProgress?: (loaded: number, total: number) => void;
  /** Local experts work on the runner's buffers and are made over them. */
  readonly experts:
    | { readonly kind: "local"; readonly create: (buffers: ExpertBuffers) => Promise<RunExperts> }
    | { readonly kind: "remote"; readonly runExperts: RunExperts };
}

/** Loads a model onto a GPU; the device stays the caller's. Rejects with KernelError, OutOfDeviceMemoryError, WeightOverflowError. */
export async function createGpuRunner(gpu: Gpu, options: GpuRunnerOptions): Promise<ModelRunner> {
  const { checkpoint, limits } = options;
  const { config } = checkpoint;
  const buffers = allocateStepBuffers(gpu, config, limits);
  const caches = allocateCaches(gpu, config, limits);
  const { maxModelLen } = limits;
  const { weights, wire, onProgress } = options;
  const model = bindModel(
    {
      kernels: await compileModelKernels(gpu, config, weights, wire, buffers.blocksPerSequence),
      weights: await loadGpuWeights(gpu, { checkpoint, weights, maxModelLen, onProgress }),
      caches,
      wire,
    },
    buffers,
  );
  const runExperts =
    options.experts.kind === "remote"
      ? options.experts.runExperts
      : await options.experts.create({
          counts: buffers.counts,
          rows: options.wire === "f16" ? buffers.rounded : buffers.normed,
          routing: buffers.routingOf,
          sums: buffers.sums,
          maxPairs: limits.maxTokens * config.numExpertsPerToken,
        });
  const runner = new GpuRunner(gpu, options, buffers, caches, model, runExperts);
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
  readonly #gpu: Gpu;
  readonly #options: GpuRunnerOptions;
  readonly #buffers: StepBuffers;
  readonly #caches: readonly GPUBuffer[];
  readonly #model: GpuModel;
  readonly #runExperts: RunExperts;
  readonly #moeLayers: readonly number[];
  #results: 0 | 1 = 0;

  constructor(
    gpu: Gpu,
    options: GpuRunnerOptions,
    buffers: StepBuffers,
    caches: readonly GPUBuffer[],
    model: GpuModel,
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
    this.#gpu = gpu;
    this.#options = options;
    this.#buffers = buffers;
    this.#caches = caches;
    this.#model = model;
    this.#runExperts = runExperts;
    this.#moeLayers = moeLayers(options.checkpoint.config);
  }

  /** Runs steps of all shapes over the still empty cache: drivers compile at the first run, which a request must not wait for. */
  async warmUp(): Promise<void> {
    const { limits, experts, checkpoint } = this.#options;
    const { numExperts, numExpertsPerToken, hiddenSize } = checkpoint.config;
    const grouped = Math.ceil((GROUPED_FROM * numExperts) / numExpertsPerToken);
    for (const wanted of [1, grouped]) {
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
      await this.#run(batch, { signal: new AbortController().signal }, runExperts);
    }
  }

  forward(batch: StepBatch, context: StepContext): Promise<StepResult> {
    return this.#run(batch, context, this.#runExperts);
  }

  async #run(batch: StepBatch, context: StepContext, runExperts: RunExperts): Promise<StepResult> {
    const { config } = this.#options.checkpoint;
    const sizes: StepSizes = {
      tokens: batch.tokenIds.length,
      samples: batch.samples.length,
      topK: config.numExpertsPerToken,
      numSlots: config.numExperts,
    };
    checkBatch(batch, this.#options.limits);
    writeInputs(this.#gpu, this.#buffers, sizes, batch);
    const step = new GpuStep(
      this.#gpu,
      this.#buffers,
      this.#options.wire,
      config.hiddenSize,
      sizes,
    );
    if (batch.follows) this.#model.follow(step.pass, sizes);
    this.#model.embed(step.pass, sizes);
    for (const [layer, stages] of this.#model.layers.entries()) {
      stages.attention(step.pass, sizes);
      if (config.layers[layer] === "dense") {
        stages.ffn(step.pass, sizes);
        continue;
      }
      const pending = runExperts(layer, step.hiddenStates(), step.routing(layer, context));
      stages.ffn(step.pass, sizes);
      // Remote experts: the shared expert computes while their rows are on the wire.
      if (pending instanceof Promise) step.submit();
      step.putSums(pending instanceof Promise ? await pending : pending);
      stages.addSums(step.pass, sizes);
    }
    this.#model.sample(step.pass, sizes);
    // The step before may not have been read yet.
    this.#results = this.#results === 0 ? 1 : 0;
    const results = this.#buffers.results[this.#results];
    const layout = encodeResults(step, this.#buffers, results, config, this.#moeLayers, batch);
    step.submit();
    return readResults(results, layout, config, this.#moeLayers, batch);
  }

  close(): void {
    const { results, ...rest } = this.#buffers;
    for (const buffer of [...this.#caches, ...results, ...Object.values(rest)]) {
      if (typeof buffer === "object" && "destroy" in buffer) buffer.destroy();
    }
  }
}
