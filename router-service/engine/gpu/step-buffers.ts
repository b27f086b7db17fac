/** Every GPU buffer of a step, allocated once, and what the host writes into them; and the KV caches that steps share. */

import type { ModelConfig } from "../../../core/model/config.ts";
import { kvWidth, moeLayers } from "../../../core/model/config.ts";
import { allocate, type Gpu, READ_BACK, STORAGE, UNIFORM } from "../../../core/gpu/device.ts";
import type { Binding } from "../../../core/gpu/kernel.ts";
import { COUNTS_BYTES, countsData, type StepSizes } from "../../../core/gpu/kernels/counts.ts";
import { gateStride } from "../../../core/gpu/kernels/gate.ts";
import { candidateStride } from "../../../core/gpu/kernels/top-candidates.ts";
import { headsWidths } from "./gpu-heads.ts";
import { latentWidths } from "./gpu-latent.ts";
import { BLOCK_SIZE, MAX_CANDIDATES, type StepBatch } from "../model-runner.ts";
import type { RunnerLimits } from "../runner-limits.ts";

/** Offsets of storage bindings must be multiples of this on every adapter. */
const ALIGNMENT = 256;

/** A sampled row that wants no particular logit. */
const NO_TARGET = 0xffffffff;

/** Buffers and layouts of a step, as `allocateStepBuffers` makes them. */
export type StepBuffers = ReturnType<typeof allocateStepBuffers>;

/** Columns of a row of logits: the vocabulary, rounded up to whole vec4. */
export function logitStride(config: ModelConfig): number {
  return Math.ceil(config.vocabSize / 4) * 4;
}

/** Allocates the buffers of steps that run one after another. Throws OutOfDeviceMemoryError. */
export function allocateStepBuffers(gpu: Gpu, config: ModelConfig, limits: RunnerLimits) {
  const { maxTokens, maxSamples, maxSequences, maxModelLen } = limits;
  const { hiddenSize, numExpertsPerToken, attention } = config;
  const widths = attention.kind === "heads" ? headsWidths(attention) : latentWidths(attention);
  const blocksPerSequence = Math.ceil(maxModelLen / BLOCK_SIZE);
  const f32 = (label: string, count: number) => allocate(gpu, label, count * 4, STORAGE);

  const sections = layOut({
    tokenIds: maxTokens,
    positions: maxTokens,
    sequenceRows: maxTokens,
    cacheSlots: maxTokens,
    sampleRows: maxSamples,
    wanted: 2 * maxSamples,
    blockTables: maxSequences * blocksPerSequence,
  });
  const inputs = allocate(gpu, "step inputs", sections.bytes, STORAGE);
  const routed = moeLayers(config);
  const routingBytes = alignUp(maxTokens * numExpertsPerToken * 8);
  const routing = allocate(gpu, "routing", routed.length * routingBytes, STORAGE);
  const rowBytes = hiddenSize * 4;
  const resultBytes =
    maxTokens * numExpertsPerToken * 8 * routed.length +
    maxSamples * (candidateStride(MAX_CANDIDATES) + logitStride(config)) * 4;
  const innerSize = Math.max(
    config.sharedExpert?.intermediateSize ?? 0,
    config.denseIntermediateSize,
    4,
  );

  return {
    blocksPerSequence,
    sections,
    host: new Uint32Array(sections.bytes / 4),
    counts: allocate(gpu, "counts", COUNTS_BYTES, UNIFORM),
    inputs,
    hidden: f32("hidden states", maxTokens * hiddenSize),
    normed: f32("normed hidden states", maxTokens * hiddenSize),
    rounded: f32("rounded hidden states", maxTokens * hiddenSize),
    /** What attention projects at once, before norms and positions. */
    projected: f32("projected queries, keys and values", maxTokens * widths.projected),
    queryLatent: f32("latent queries", maxTokens * widths.queryLatent),
    queryHeads: f32("queries of latent attention", maxTokens * widths.queryHeads),
    /** What meets the cache's keys. */
    query: f32("queries", maxTokens * widths.query),
    /** What comes of the cache's values. */
    attended: f32("attention results", maxTokens * widths.attended),
    values: f32("attention results out of latent vectors", maxTokens * widths.values),
    inner: f32("inner states", maxTokens * innerSize),
    gateLogits: f32("gate logits", maxTokens * gateStride(config.numExperts)),
    sharedGate: f32("shared expert gates", maxTokens),
    sums: f32("expert sums", maxTokens * hiddenSize),
    sampled: f32("sampled hidden states", maxSamples * hiddenSize),
    logits: f32("logits", maxSamples * logitStride(config)),
    candidates: f32("candidates", maxSamples * candidateStride(MAX_CANDIDATES)),
    routing,
    routingBytes,
    /** Two, for two steps in flight. */
    results: [
      allocate(gpu, "step read-back", resultBytes, READ_BACK),
      allocate(gpu, "second step read-back", resultBytes, READ_BACK),
    ] as const,
    rows: allocate(gpu, "rows read-back", maxTokens * rowBytes + routingBytes, READ_BACK),
    /** Part of the inputs. */
    input: (name: Section): Binding => ({ buffer: inputs, ...sections.of[name] }),
    /** Part of the routing that belongs to a layer. */
    routingOf: (layer: number): { buffer: GPUBuffer; offset: number; size: number } => ({
      buffer: routing,
      offset: routed.indexOf(layer) * routingBytes,
      size: routingBytes,
    }),
  };
}

/** Allocates the KV cache of each layer, f32 [numBlocks · BLOCK_SIZE, kvWidth]. Throws OutOfDeviceMemoryError. */
export function allocateCaches(gpu: Gpu, config: ModelConfig, { numBlocks }: RunnerLimits) {
  const bytes = numBlocks * BLOCK_SIZE * kvWidth(config.attention) * 4;
  return config.layers.map((_, layer) =>
    allocate(gpu, `KV cache of layer ${layer}, ${numBlocks} blocks`, bytes, STORAGE),
  );
}

type Section =
  | "tokenIds"
  | "positions"
  | "sequenceRows"
  | "cacheSlots"
  | "sampleRows"
  | "wanted"
  | "blockTables";

/** Writes a batch into the step's inputs and its sizes into the counts. */
export function writeInputs(
  gpu: Gpu,
  buffers: StepBuffers,
  sizes: StepSizes,
  batch: StepBatch,
): void {
  const { host, sections, blocksPerSequence } = buffers;
  const put = (name: Section, values: ArrayLike<number>, at = 0) =>
    host.set(values, sections.of[name].offset / 4 + at);
  put("tokenIds", batch.tokenIds);
  put("positions", batch.positions);
  put("sequenceRows", batch.sequenceRows);
  put(
    "cacheSlots",
    batch.positions.map((position, token) => {
      const table = batch.blockTables[batch.sequenceRows[token]];
      return table[Math.floor(position / BLOCK_SIZE)] * BLOCK_SIZE + (position % BLOCK_SIZE);
    }),
  );
  batch.samples.forEach((sample, i) => {
    put("sampleRows", [sample.token], i);
    put("wanted", [sample.numCandidates, sample.targetTokenId ?? NO_TARGET], 2 * i);
  });
  batch.blockTables.forEach((table, row) => {
    put("blockTables", table, row * blocksPerSequence);
  });
  const used = sections.of.blockTables.offset / 4 + batch.blockTables.length * blocksPerSequence;
  gpu.device.queue.writeBuffer(buffers.counts, 0, countsData(sizes));
  gpu.device.queue.writeBuffer(buffers.inputs, 0, host, 0, used);
}

function alignUp(bytes: number): number {
  return Math.ceil(bytes / ALIGNMENT) * ALIGNMENT;
}

/** Places sections of u32 one after the other, each where a binding may begin. */
function layOut(lengths: Readonly<Record<Section, number>>) {
  const of = {} as Record<Section, { offset: number; size: number }>;
  let bytes = 0;
  for (const [name, length] of Object.entries(lengths) as [Section, number][]) {
    const size = Math.max(16, length * 4);
    of[name] = { offset: bytes, size };
    bytes = alignUp(bytes + size);
  }
  return { of, bytes };
}
