/** Runs the model's layers in plain loops: `--device cpu`, and the oracle of the GPU's runner. */

import {
  embed,
  linear,
  logSumExp,
  rmsNorm,
  roundRows,
  topIndices,
} from "../../../core/cpu/operations.ts";
import { ropeTable } from "../../../core/cpu/rope.ts";
import type { WeightsDtype } from "../../../core/expert-device.ts";
import type { Checkpoint } from "../../../core/model/checkpoint/checkpoint.ts";
import { readLayer, readModelWeights } from "../../../core/model/checkpoint/weights.ts";
import type { WireSetting } from "../../../core/wire-rows.ts";
import { type CpuAttention, type CpuAttentionContext, loadAttention } from "./cpu-attention.ts";
import { type CpuLayerFfn, loadLayerFfn } from "./cpu-ffn.ts";
import { cpuLoader } from "./cpu-weights.ts";
import type {
  ModelRunner,
  SampleLogits,
  StepBatch,
  StepContext,
  StepResult,
} from "../model-runner.ts";
import type { Routing, RunExperts } from "../run-experts.ts";
import { checkBatch, type RunnerLimits } from "../runner-limits.ts";

/** What a runner on the CPU is made of. */
export interface CpuRunnerOptions {
  readonly checkpoint: Checkpoint;
  readonly weights: WeightsDtype;
  readonly wire: WireSetting;
  readonly limits: RunnerLimits;
  readonly runExperts: RunExperts;
  /** Called after each layer that was loaded. */
  readonly onProgress?: (loaded: number, total: number) => void;
}

/** A decoder layer. */
interface Layer {
  /** [hiddenSize] */
  readonly inputNorm: Float32Array;
  readonly attention: CpuAttention;
  /** [hiddenSize] */
  readonly ffnNorm: Float32Array;
  readonly ffn: CpuLayerFfn;
}

/** Weights outside of the layers. */
interface Ends {
  /** [vocabSize, hiddenSize] */
  readonly embedding: Float32Array;
  /** [hiddenSize] */
  readonly finalNorm: Float32Array;
  /** [vocabSize, hiddenSize] */
  readonly lmHead: Float32Array;
}

/** Loads a model into host memory. Rejects with WeightOverflowError, and as reading does. */
export async function createCpuRunner(options: CpuRunnerOptions): Promise<ModelRunner> {
  const { checkpoint, limits } = options;
  const { config } = checkpoint;
  const { hiddenSize, rmsNormEps, multipliers } = config;
  const ends = await loadEnds(checkpoint, options.weights);
  const layers = await loadLayers(options);

  const forward = async (batch: StepBatch, context: StepContext): Promise<StepResult> => {
    checkBatch(batch, limits);
    const routing = new Map<number, Routing>();
    const hidden = embed(ends.embedding, batch.tokenIds, hiddenSize, multipliers.embedding);
    const add = (values: Float32Array) => addTo(hidden, values, multipliers.residual);
    for (const [index, layer] of layers.entries()) {
      // Plain loops are slow: sockets and timers get their turn between layers.
      await new Promise((resolve) => setImmediate(resolve));
      context.signal.throwIfAborted();
      add(layer.attention(rmsNorm(hidden, layer.inputNorm, rmsNormEps), batch));
      const normed = rmsNorm(hidden, layer.ffnNorm, rmsNormEps);
      const { ffn } = layer;
      if (ffn.kind === "dense") {
        add(ffn.dense(normed));
        continue;
      }
      const chosen = ffn.route(normed);
      routing.set(index, chosen);
      const rows = roundRows(normed, hiddenSize, options.wire);
      const pending = options.runExperts(
        index,
        { numTokens: batch.tokenIds.length, hiddenSize },
        { topK: chosen.topK, read: async () => ({ rows, routing: chosen }), ...context },
      );
      if (ffn.shared !== undefined) add(ffn.shared(normed));
      const sums = await pending;
      if (sums.kind !== "host") throw new TypeError("a step on the CPU needs experts on the host");
      add(sums.values);
    }
    return { routing, samples: batch.samples.map((_, row) => sample(hidden, batch, row)) };
  };

  function sample(hidden: Float32Array, batch: StepBatch, row: number): SampleLogits {
    const { token, numCandidates, fullLogits, targetTokenId } = batch.samples[row];
    const last = hidden.subarray(token * hiddenSize, (token + 1) * hiddenSize);
    const normed = rmsNorm(last, ends.finalNorm, rmsNormEps);
    const logits = linear(normed, ends.lmHead, hiddenSize).map((l) => l * multipliers.logits);
    const candidateIds = Uint32Array.from(topIndices(logits, numCandidates));
    return {
      candidateIds,
      candidateLogits: Float32Array.from(candidateIds, (id) => logits[id]),
      logSumExp: logSumExp(logits),
      targetLogit: targetTokenId === undefined ? Number.NaN : logits[targetTokenId],
      logits: fullLogits ? logits : undefined,
    };
  }

  return {
    adapter: "cpu",
    runsAhead: false,
    maxTokens: limits.maxTokens,
    maxSequences: limits.maxSequences,
    maxSamples: limits.maxSamples,
    numBlocks: limits.numBlocks,
    forward,
    lost: new Promise(() => {}),
    close: () => {},
  };
}

async function loadEnds(checkpoint: Checkpoint, dtype: WeightsDtype): Promise<Ends> {
  const load = cpuLoader("", dtype);
  const whole = await readModelWeights(checkpoint);
  const embedding = load.matrix("embedding", whole.embedding);
  const tied = whole.lmHead === whole.embedding;
  return {
    embedding,
    finalNorm: load.vector("final norm", whole.finalNorm),
    lmHead: tied ? embedding : load.matrix("lm_head", whole.lmHead),
  };
}

async function loadLayers(options: CpuRunnerOptions): Promise<Layer[]> {
  const { checkpoint, weights, limits } = options;
  const { config } = checkpoint;
  const context: CpuAttentionContext = {
    config,
    rope: ropeTable(limits.maxModelLen, config.rope),
    numBlocks: limits.numBlocks,
  };
  const layers: Layer[] = [];
  for (let layer = 0; layer < config.numLayers; layer++) {
    const of = await readLayer(checkpoint, layer);
    const load = cpuLoader(`layer ${layer} `, weights);
    layers.push({
      inputNorm: load.vector("input norm", of.inputNorm),
      attention: loadAttention(context, layer, of, load),
      ffnNorm: load.vector("post-attention norm", of.postAttentionNorm),
      ffn: loadLayerFfn(config, of.ffn, load),
    });
    options.onProgress?.(layer + 1, config.numLayers);
  }
  return layers;
}

function addTo(target: Float32Array, values: Float32Array, factor: number): void {
  for (let i = 0; i < target.length; i++) target[i] += values[i] * factor;
}
