/** One step's commands on their way to the GPU, and its side of the seam to the experts. */

import { mapForReading } from "../../../core/gpu/polling.ts";
import type { Gpu } from "../../../core/gpu/device.ts";
import type { StepSizes } from "../../../core/gpu/kernels/counts.ts";
import type { WireSetting } from "../../../core/wire-rows.ts";
import type { StepContext } from "../model-runner.ts";
import type { ExpertSums, HiddenStates, Routing, StepRouting } from "../run-experts.ts";
import type { StepBuffers } from "./step-buffers.ts";

/** Commands of a step, submitted in one or several parts. A step that is not submitted costs nothing. */
export class GpuStep {
  readonly #gpu: Gpu;
  readonly #buffers: StepBuffers;
  readonly #rows: GPUBuffer;
  readonly #hiddenSize: number;
  readonly #sizes: StepSizes;
  #encoder: GPUCommandEncoder | undefined;
  #pass: GPUComputePassEncoder | undefined;

  constructor(
    gpu: Gpu,
    buffers: StepBuffers,
    wire: WireSetting,
    hiddenSize: number,
    sizes: StepSizes,
  ) {
    this.#gpu = gpu;
    this.#buffers = buffers;
    this.#rows = wire === "f32" ? buffers.normed : buffers.rounded;
    this.#hiddenSize = hiddenSize;
    this.#sizes = sizes;
  }

  /** The open compute pass. */
  get pass(): GPUComputePassEncoder {
    this.#encoder ??= this.#gpu.device.createCommandEncoder();
    this.#pass ??= this.#encoder.beginComputePass();
    return this.#pass;
  }

  /** Encodes a copy after what was encoded so far. */
  copy(from: GPUBuffer, fromOffset: number, to: GPUBuffer, toOffset: number, bytes: number): void {
    this.#pass?.end();
    this.#pass = undefined;
    this.#encoder ??= this.#gpu.device.createCommandEncoder();
    this.#encoder.copyBufferToBuffer(from, fromOffset, to, toOffset, bytes);
  }

  /** Sends what was encoded so far. */
  submit(): void {
    this.#pass?.end();
    this.#pass = undefined;
    if (this.#encoder !== undefined) this.#gpu.device.queue.submit([this.#encoder.finish()]);
    this.#encoder = undefined;
  }

  /** What the experts get: rows rounded to the wire's dtype. */
  hiddenStates(): HiddenStates {
    return { numTokens: this.#sizes.tokens, hiddenSize: this.#hiddenSize };
  }

  routing(layer: number, context: StepContext): StepRouting {
    return {
      topK: this.#sizes.topK,
      pass: this.pass,
      read: () => this.#read(layer),
      signal: context.signal,
      traceContext: context.traceContext,
    };
  }

  /** Puts the experts' sums where the stage that is encoded next reads them. */
  putSums(sums: ExpertSums): void {
    if (sums.kind === "gpu") return;
    // A write happens before what is submitted later: what was encoded so far may still read the layer's before.
    this.submit();
    this.writeSums(sums);
  }

  /** Puts the experts' sums where what is encoded, and not submitted yet, reads them. */
  writeSums(sums: ExpertSums): void {
    if (sums.kind === "gpu") return;
    const { values } = sums;
    this.#gpu.device.queue.writeBuffer(
      this.#buffers.sums,
      0,
      values.buffer,
      values.byteOffset,
      values.byteLength,
    );
  }

  async #read(layer: number): Promise<{ rows: Float32Array; routing: Routing }> {
    const { tokens, topK } = this.#sizes;
    const { rows: staging } = this.#buffers;
    const rowsBytes = tokens * this.#hiddenSize * 4;
    const routingBytes = tokens * topK * 8;
    const { buffer, offset } = this.#buffers.routingOf(layer);
    this.copy(this.#rows, 0, staging, 0, rowsBytes);
    this.copy(buffer, offset, staging, rowsBytes, routingBytes);
    this.submit();
    await mapForReading(staging, rowsBytes + routingBytes, tokens);
    const mapped = staging.getMappedRange(0, rowsBytes + routingBytes);
    const rows = new Float32Array(mapped.slice(0, rowsBytes));
    const routing = splitRouting(new Uint32Array(mapped, rowsBytes, tokens * topK * 2), topK);
    staging.unmap();
    return { rows, routing };
  }
}

/** Routing of one layer from (expert id, weight bits) pairs. */
export function splitRouting(words: Uint32Array, topK: number): Routing {
  const ids = new Uint32Array(words.length / 2);
  const bits = new Uint32Array(words.length / 2);
  for (let i = 0; i < ids.length; i++) {
    ids[i] = words[2 * i];
    bits[i] = words[2 * i + 1];
  }
  return { ids, weights: new Float32Array(bits.buffer), topK };
}
