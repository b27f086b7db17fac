/** What a step gives back, in one read-back: routing of all layers, candidates, and whole rows of logits where wanted. */

import { mapForReading } from "../../../core/gpu/polling.ts";
import type { ModelConfig } from "../../../core/model/config.ts";
import { candidateStride } from "../../../core/gpu/kernels/top-candidates.ts";
import { type GpuStep, splitRouting } from "./gpu-step.ts";
import {
  MAX_CANDIDATES,
  type SampleLogits,
  type StepBatch,
  type StepResult,
} from "../model-runner.ts";
import type { Routing } from "../run-experts.ts";
import { logitStride, type StepBuffers } from "./step-buffers.ts";

/** Byte offsets in the read-back. */
export interface ResultLayout {
  /** Routing of a layer u32 [numTokens, topK, 2], layer after layer. */
  readonly routingBytes: number;
  readonly candidates: number;
  /** Offset of each sampled row's logits; undefined where they are not wanted. */
  readonly logits: readonly (number | undefined)[];
  readonly bytes: number;
}

const STRIDE = candidateStride(MAX_CANDIDATES);

/** Encodes the copies into the read-back buffer. */
export function encodeResults(
  step: GpuStep,
  buffers: StepBuffers,
  results: GPUBuffer,
  config: ModelConfig,
  moeLayers: readonly number[],
  batch: StepBatch,
): ResultLayout {
  const routingBytes = batch.tokenIds.length * config.numExpertsPerToken * 8;
  let at = 0;
  const put = (from: GPUBuffer, offset: number, bytes: number) => {
    if (bytes > 0) step.copy(from, offset, results, at, bytes);
    at += bytes;
    return at - bytes;
  };
  for (const layer of moeLayers) {
    const { buffer, offset } = buffers.routingOf(layer);
    put(buffer, offset, routingBytes);
  }
  const candidates = put(buffers.candidates, 0, batch.samples.length * STRIDE * 4);
  const rowBytes = logitStride(config) * 4;
  const logits = batch.samples.map((sample, row) =>
    sample.fullLogits ? put(buffers.logits, row * rowBytes, config.vocabSize * 4) : undefined,
  );
  return { routingBytes, candidates, logits, bytes: at };
}

/** Waits for the step and reads its results. */
export async function readResults(
  results: GPUBuffer,
  layout: ResultLayout,
  config: ModelConfig,
  moeLayers: readonly number[],
  batch: StepBatch,
): Promise<StepResult> {
  await mapForReading(results, Math.max(4, layout.bytes), batch.tokenIds.length);
  try {
    const mapped = results.getMappedRange(0, Math.max(4, layout.bytes));
    const routing = new Map<number, Routing>();
    for (const [i, layer] of moeLayers.entries()) {
      const words = new Uint32Array(mapped, i * layout.routingBytes, layout.routingBytes / 4);
      routing.set(layer, splitRouting(words, config.numExpertsPerToken));
    }
    const samples = batch.samples.map((sample, row): SampleLogits => {
      const at = layout.candidates + row * STRIDE * 4;
      const numCandidates = Math.min(sample.numCandidates, config.vocabSize);
      const ids = new Uint32Array(mapped, at, numCandidates);
      const values = new Float32Array(mapped, at + MAX_CANDIDATES * 4, numCandidates);
      const [logSumExp, target] = new Float32Array(mapped, at + 2 * MAX_CANDIDATES * 4, 2);
      const logitsAt = layout.logits[row];
      return {
        candidateIds: ids.slice(),
        candidateLogits: values.slice(),
        logSumExp,
        targetLogit: sample.targetTokenId === undefined ? Number.NaN : target,
        logits:
          logitsAt === undefined
            ? undefined
            : new Float32Array(mapped, logitsAt, config.vocabSize).slice(),
      };
    });
    return { samples, routing };
  } finally {
    results.unmap();
  }
}
