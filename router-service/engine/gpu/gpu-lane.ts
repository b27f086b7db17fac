/** One micro-batch's way through the layers: buffers of its own, and the model bound to them. */

import type { Gpu } from "../../../core/gpu/device.ts";
import type { StepSizes } from "../../../core/gpu/kernels/counts.ts";
import { type ModelConfig, moeLayers } from "../../../core/model/config.ts";
import type { WireSetting } from "../../../core/wire-rows.ts";
import { bindModel, type GpuModel, type ModelParts } from "./gpu-model.ts";
import { GpuStep } from "./gpu-step.ts";
import type { StepBatch, StepContext, StepResult } from "../model-runner.ts";
import type { RunExperts } from "../run-experts.ts";
import type { RunnerLimits } from "../runner-limits.ts";
import { allocateStepBuffers, type StepBuffers, writeInputs } from "./step-buffers.ts";
import { encodeResults, readResults } from "./step-results.ts";

/** Where a lane follows another one, or is followed: a layer's commands reach the GPU in this order. */
export interface LaneOrder {
  /** Settles when the lane ahead has passed this MoE layer's attention, or submitted all of its step. */
  before?(layer: number): Promise<void>;
  /** Called when this lane has. */
  after?(layer: number): void;
}

/** What stands for a layer's number when all of a step is submitted. */
const WHOLE_STEP = -1;

/** Runs one batch at a time; where all experts are local, the next one may be started before the last is read. */
export class GpuLane {
  readonly buffers: StepBuffers;
  readonly #gpu: Gpu;
  readonly #config: ModelConfig;
  readonly #wire: WireSetting;
  readonly #model: GpuModel;
  readonly #moeLayers: readonly number[];
  #results: 0 | 1 = 0;

  /** Throws OutOfDeviceMemoryError. */
  constructor(gpu: Gpu, config: ModelConfig, limits: RunnerLimits, parts: ModelParts) {
    this.buffers = allocateStepBuffers(gpu, config, limits);
    this.#gpu = gpu;
    this.#config = config;
    this.#wire = parts.wire;
    this.#model = bindModel(parts, this.buffers);
    this.#moeLayers = moeLayers(config);
  }

  /**
   * Runs a batch through all layers; with local experts and no order everything is submitted before this returns, so
   * that the next step may write its inputs. Rejects as the experts do, or with the signal's reason.
   */
  async run(
    batch: StepBatch,
    context: StepContext,
    runExperts: RunExperts,
    order: LaneOrder = {},
  ): Promise<StepResult> {
    const config = this.#config;
    const sizes: StepSizes = {
      tokens: batch.tokenIds.length,
      samples: batch.samples.length,
      chunkTokens: chunkTokens(batch.sequenceRows),
      topK: config.numExpertsPerToken,
      numSlots: config.numExperts,
    };
    writeInputs(this.#gpu, this.buffers, sizes, batch);
    const step = new GpuStep(this.#gpu, this.buffers, this.#wire, config.hiddenSize, sizes);
    if (batch.follows) this.#model.follow(step.pass, sizes);
    this.#model.embed(step.pass, sizes);
    const { layers, sample } = this.#model;
    layers[0].attention(step.pass, sizes);
    for (const [layer, stages] of layers.entries()) {
      const next = layers.at(layer + 1)?.attention ?? sample;
      if (config.layers[layer] === "dense") {
        stages.ffn(step.pass, sizes);
        next(step.pass, sizes);
        continue;
      }
      if (order.before !== undefined) await order.before(layer);
      const pending = runExperts(layer, step.hiddenStates(), step.routing(layer, context));
      stages.ffn(step.pass, sizes);
      // Remote experts: the shared expert computes while their rows are on the wire.
      if (pending instanceof Promise) step.submit();
      else step.putSums(pending);
      order.after?.(layer);
      // Encoded meanwhile, too; submitted when the sums are there.
      stages.addSums(step.pass, sizes);
      next(step.pass, sizes);
      if (pending instanceof Promise) step.writeSums(await pending);
    }
    // The step before may not have been read yet.
    this.#results = this.#results === 0 ? 1 : 0;
    const results = this.buffers.results[this.#results];
    const layout = encodeResults(step, this.buffers, results, config, this.#moeLayers, batch);
    if (order.before !== undefined) await order.before(WHOLE_STEP);
    step.submit();
    order.after?.(WHOLE_STEP);
    return readResults(results, layout, config, this.#moeLayers, batch);
  }

  close(): void {
    const { results, ...rest } = this.buffers;
    for (const buffer of [...results, ...Object.values(rest)]) {
      if (typeof buffer === "object" && "destroy" in buffer) buffer.destroy();
    }
  }
}

/** Tokens that stand beside another one of their sequence. */
function chunkTokens(sequenceRows: ArrayLike<number>): number {
  let count = 0;
  for (let i = 0; i < sequenceRows.length; i++) {
    const row = sequenceRows[i];
    if (row === sequenceRows[i - 1] || row === sequenceRows[i + 1]) count++;
  }
  return count;
}
