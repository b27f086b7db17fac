/** Runs the model's layers in plain loops: `--device cpu`, and the oracle of the GPU's runner. */

import * as cpu from "../../core/cpu/operations.ts";
import type { WeightsDtype } from "../../core/expert-device.ts";
import type { Checkpoint } from "../../core/model/checkpoint.ts";
import { kvWidth } from "../../core/model/config.ts";
import { type LayerWeights, readLayer, readModelWeights } from "../../core/model/weights.ts";
import type { HostTensor } from "../../core/tensor.ts";
import { stackWeights } from "../../core/weights.ts";
import type { WireSetting } from "../../core/wire.ts";
import {
  BLOCK_SIZE,
  type ModelRunner,
  type SampleLogits,
  type StepBatch,
  type StepContext,
  type StepResult,
} from "./model-runner.ts";
import type { Routing, RunExperts } from "./run-experts.ts";
import { checkBatch, type RunnerLimits } from "./runner-limits.ts";
import { headsOf, UnsupportedModelError } from "./supported.ts";

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

/** Weights of a decoder layer as f32 values, rounded to the cluster's dtype. */
interface Layer {
  readonly inputNorm: Float32Array;
  readonly qkv: readonly { readonly weight: Float32Array; readonly bias?: Float32Array }[];
  readonly output: Float32Array;
  readonly ffnNorm: Float32Array;
  readonly ffn:
    | { readonly kind: "dense"; readonly gateUp: Float32Array; readonly down: Float32Array }
    | { readonly kind: "moe"; readonly gate: Float32Array; readonly shared?: SharedExpert };
  /** [numSlots, 2, numKvHeads·headDim] */
  readonly cache: Float32Array;
}

interface SharedExpert {
  readonly gateUp: Float32Array;
  readonly down: Float32Array;
  readonly gate?: Float32Array;
}

/** Loads a model into host memory. Rejects with WeightOverflowError, and as reading does. */
export async function createCpuRunner(options: CpuRunnerOptions): Promise<ModelRunner> {
  const { checkpoint, weights, limits } = options;
  const { config } = checkpoint;
  const heads = headsOf(config);
  const whole = await readModelWeights(checkpoint);
  const embedding = load("embedding", [whole.embedding], weights);
  const tied = whole.lmHead === whole.embedding;
  const lmHead = tied ? embedding : load("lm_head", [whole.lmHead], weights);
  const finalNorm = load("final norm", [whole.finalNorm], "f32");
  const layers: Layer[] = [];
  for (let layer = 0; layer < config.numLayers; layer++) {
    const of = await readLayer(checkpoint, layer);
    const cacheSize = limits.numBlocks * BLOCK_SIZE * kvWidth(config.attention);
    layers.push(loadLayer(`layer ${layer}`, of, weights, cacheSize));
    options.onProgress?.(layer + 1, config.numLayers);
  }
  const rope = cpu.ropeTable(limits.maxModelLen, heads.headDim, config.rope.theta);

  const forward = async (batch: StepBatch, context: StepContext): Promise<StepResult> => {
    checkBatch(batch, limits);
    const routing = new Map<number, Routing>();
    const hidden = cpu.embed(embedding, batch.tokenIds, config.hiddenSize);
    for (const [index, layer] of layers.entries()) {
      // Plain loops are slow: sockets and timers get their turn between layers.
      await new Promise((resolve) => setImmediate(resolve));
      context.signal.throwIfAborted();
      addTo(hidden, attend(layer, hidden, batch));
      const normed = cpu.rmsNorm(hidden, layer.ffnNorm, config.rmsNormEps);
      const { ffn } = layer;
      if (ffn.kind === "dense") {
        addTo(hidden, cpu.swiGlu(normed, ffn.gateUp, ffn.down, config.hiddenSize));
        continue;
      }
      const logits = cpu.linear(normed, ffn.gate, config.hiddenSize);
      const { numExperts, numExpertsPerToken: topK } = config;
      const chosen = {
        ...cpu.softmaxTopK(logits, numExperts, topK, config.gate.normTopkProb),
        topK,
      };
      routing.set(index, chosen);
      const rows = options.wire === "f16" ? cpu.roundRows(normed, config.hiddenSize) : normed;
      const pending = options.runExperts(
        index,
        { numTokens: batch.tokenIds.length, hiddenSize: config.hiddenSize },
        { topK, read: async () => ({ rows, routing: chosen }), ...context },
      );
      if (ffn.shared !== undefined) addTo(hidden, runShared(ffn.shared, normed));
      const sums = await pending;
      if (sums.kind !== "host") throw new TypeError("a step on the CPU needs experts on the host");
      addTo(hidden, sums.values);
    }
    return { routing, samples: batch.samples.map((_, row) => sample(hidden, batch, row)) };
  };

  function attend(layer: Layer, hidden: Float32Array, batch: StepBatch): Float32Array {
    const { hiddenSize } = config;
    const { headDim } = heads;
    const normed = cpu.rmsNorm(hidden, layer.inputNorm, config.rmsNormEps);
    const [q, k, v] = layer.qkv.map(({ weight, bias }) =>
      cpu.linear(normed, weight, hiddenSize, bias),
    );
    cpu.rotate(q, batch.positions, rope, headDim);
    cpu.rotate(k, batch.positions, rope, headDim);
    const slotOf = (token: number, position: number) =>
      batch.blockTables[batch.sequenceRows[token]][Math.floor(position / BLOCK_SIZE)] * BLOCK_SIZE +
      (position % BLOCK_SIZE);
    const width = heads.numKvHeads * headDim;
    batch.positions.forEach((position, token) => {
      const at = slotOf(token, position) * 2 * width;
      layer.cache.set(k.subarray(token * width, (token + 1) * width), at);
      layer.cache.set(v.subarray(token * width, (token + 1) * width), at + width);
    });
    const attended = cpu.attention(q, batch.positions, { values: layer.cache, slotOf }, heads);
    return cpu.linear(attended, layer.output, heads.numHeads * headDim);
  }

  function runShared(shared: SharedExpert, normed: Float32Array): Float32Array {
    const { hiddenSize } = config;
    const out = cpu.swiGlu(normed, shared.gateUp, shared.down, hiddenSize);
    if (shared.gate === undefined) return out;
    const gates = cpu.linear(normed, shared.gate, hiddenSize);
    return out.map((value, i) => cpu.sigmoid(gates[Math.floor(i / hiddenSize)]) * value);
  }

  function sample(hidden: Float32Array, batch: StepBatch, row: number): SampleLogits {
    const { token, numCandidates, fullLogits, targetTokenId } = batch.samples[row];
    const { hiddenSize, vocabSize } = config;
    const last = hidden.subarray(token * hiddenSize, (token + 1) * hiddenSize);
    const normed = cpu.rmsNorm(last, finalNorm, config.rmsNormEps);
    const logits = cpu.linear(normed, lmHead, hiddenSize).subarray(0, vocabSize);
    const candidateIds = Uint32Array.from(cpu.topIndices(logits, numCandidates));
    return {
      candidateIds,
      candidateLogits: Float32Array.from(candidateIds, (id) => logits[id]),
      logSumExp: cpu.logSumExp(logits),
      targetLogit: targetTokenId === undefined ? Number.NaN : logits[targetTokenId],
      logits: fullLogits ? logits : undefined,
    };
  }

  return {
    adapter: "cpu",
    maxTokens: limits.maxTokens,
    maxSequences: limits.maxSequences,
    maxSamples: limits.maxSamples,
    numBlocks: limits.numBlocks,
    forward,
    lost: new Promise(() => {}),
    close: () => {},
  };
}

function loadLayer(at: string, of: LayerWeights, dtype: WeightsDtype, cacheSize: number): Layer {
  const matrix = (name: string, ...tensors: readonly HostTensor[]) =>
    load(`${at} ${name}`, tensors, dtype);
  const vector = (name: string, tensor: HostTensor) => load(`${at} ${name}`, [tensor], "f32");
  const { ffn, attention } = of;
  if (attention.kind !== "heads") {
    throw new UnsupportedModelError(`${at}: latent attention is not supported`);
  }
  return {
    inputNorm: vector("input norm", of.inputNorm),
    qkv: [attention.q, attention.k, attention.v].map(({ weight, bias }) => ({
      weight: matrix("q, k and v", weight),
      bias: bias && vector("q, k and v bias", bias),
    })),
    output: matrix("attention output", attention.o.weight),
    ffnNorm: vector("post-attention norm", of.postAttentionNorm),
    ffn:
      ffn.kind === "dense"
        ? {
            kind: "dense",
            gateUp: matrix("gate and up", ffn.dense.gate, ffn.dense.up),
            down: matrix("down", ffn.dense.down),
          }
        : {
            kind: "moe",
            gate: vector("gate", ffn.gate.weight),
            shared: ffn.shared && {
              gateUp: matrix("shared gate and up", ffn.shared.expert.gate, ffn.shared.expert.up),
              down: matrix("shared down", ffn.shared.expert.down),
              gate: ffn.shared.gate && vector("shared gate", ffn.shared.gate),
            },
          },
    cache: new Float32Array(cacheSize),
  };
}

/** Weights as f32 values, rounded to the dtype. Throws as `convertWeights`. */
function load(name: string, tensors: readonly HostTensor[], dtype: WeightsDtype): Float32Array {
  const stacked = stackWeights(name, tensors, dtype);
  return stacked instanceof Float32Array ? stacked : new Float32Array(stacked);
}

function addTo(target: Float32Array, values: Float32Array): void {
  for (let i = 0; i < target.length; i++) target[i] += values[i];
}
