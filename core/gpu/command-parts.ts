/** Long work for a GPU in parts, so that other work comes in between. */

import type { Gpu } from "./device.ts";

/** Commands that are submitted when they come to about so many bytes. */
export class CommandParts {
  /** Takes the commands of the present part. */
  encoder: GPUCommandEncoder;
  /** What they come to so far. */
  bytes = 0;
  readonly #gpu: Gpu;
  readonly #partBytes: number;
  #tasks: (() => void)[] = [];

  constructor(gpu: Gpu, partBytes: number) {
    this.#gpu = gpu;
    // Copies are of whole words.
    this.#partBytes = Math.max(4, 4 * Math.floor(partBytes / 4));
    this.encoder = gpu.device.createCommandEncoder();
  }

  /** Bytes that are missing to a whole part. */
  get room(): number {
    return this.#partBytes - this.bytes;
  }

  /** Counts what was encoded; whether the part is whole. */
  add(bytes: number): boolean {
    this.bytes += bytes;
    return this.room <= 0;
  }

  /** Does something once what was encoded is submitted. */
  onSubmit(task: () => void): void {
    this.#tasks.push(task);
  }

  /** Submits what was encoded, and begins anew; its bytes. */
  submit(): number {
    const { device } = this.#gpu;
    device.queue.submit([this.encoder.finish()]);
    for (const task of this.#tasks) task();
    const { bytes } = this;
    this.encoder = device.createCommandEncoder();
    this.bytes = 0;
    this.#tasks = [];
    return bytes;
  }
}
