/** Packs experts in worker threads: quantisation takes far longer than reading, and the main thread has rows to serve. */

import { availableParallelism } from "node:os";
import { Worker } from "node:worker_threads";

import type { ExpertSizes, StoredExpert } from "../expert-device.ts";
import type { ExpertFormat, PackedExpert } from "../expert-format.ts";
import type { StoredMatrix } from "../tensor.ts";
import { WeightOverflowError } from "../weights.ts";

/** What a worker is asked. */
export interface PackRequest {
  readonly name: string;
  readonly weights: StoredExpert;
  readonly sizes: ExpertSizes;
  readonly format: ExpertFormat;
}

/** What it answers: the expert, or the error that packing threw. */
export type PackAnswer =
  | { readonly expert: PackedExpert }
  | { readonly kind: string; readonly message: string };

/** Threads of a pool at most: beyond, reading is the slower half. */
const MAX_WORKERS = 16;

interface Thread {
  readonly worker: Worker;
  current?: PromiseWithResolvers<PackedExpert>;
}

/** Threads that pack; they keep the process alive until the pool is closed. */
export class PackPool {
  readonly numWorkers: number;
  readonly #threads: Thread[];
  readonly #waiting: ((thread: Thread) => void)[] = [];
  readonly #idle: Thread[];
  #failure: Error | undefined;

  constructor(numWorkers: number = Math.min(MAX_WORKERS, availableParallelism())) {
    this.numWorkers = numWorkers;
    this.#threads = Array.from({ length: numWorkers }, () => this.#start());
    this.#idle = [...this.#threads];
  }

  /**
   * Packs as `packExpert` does, and throws as it does. The weights' bytes go to the thread: the caller has them no more.
   * Waits for a thread that is free.
   */
  async pack(request: PackRequest): Promise<PackedExpert> {
    const thread =
      this.#idle.pop() ?? (await new Promise<Thread>((resolve) => this.#waiting.push(resolve)));
    if (this.#failure) {
      this.#release(thread);
      throw this.#failure;
    }
    const { weights, buffers } = movable(request.weights);
    // Sizes may be a whole model's config.
    const { hiddenSize, expertIntermediateSize, activation, expertBias } = request.sizes;
    const sizes = { hiddenSize, expertIntermediateSize, activation, expertBias };
    const current = Promise.withResolvers<PackedExpert>();
    try {
      thread.worker.postMessage({ ...request, sizes, weights } satisfies PackRequest, buffers);
    } catch (error) {
      this.#release(thread);
      throw error;
    }
    thread.current = current;
    return current.promise;
  }

  /** Ends the threads; what they pack is lost. */
  async close(): Promise<void> {
    this.#fail(new Error("the pool of packing threads is closed"));
    await Promise.all(this.#threads.map(({ worker }) => worker.terminate()));
  }

  #start(): Thread {
    // The process's own flags may load what a thread must not.
    const worker = new Worker(new URL("pack-worker.ts", import.meta.url), { execArgv: [] });
    const thread: Thread = { worker };
    worker.on("message", (answer: PackAnswer) => {
      const { current } = thread;
      thread.current = undefined;
      this.#release(thread);
      if ("expert" in answer) current?.resolve(answer.expert);
      else current?.reject(errorOf(answer));
    });
    worker.on("error", (error) => this.#fail(error as Error));
    worker.on("exit", (code) => this.#fail(new Error(`a packing thread ended with ${code}`)));
    return thread;
  }

  #release(thread: Thread): void {
    const next = this.#waiting.shift();
    if (next) next(thread);
    else this.#idle.push(thread);
  }

  #fail(error: Error): void {
    this.#failure ??= error;
    for (const thread of this.#threads) {
      const { current } = thread;
      if (!current) continue;
      thread.current = undefined;
      this.#release(thread);
      current.reject(this.#failure);
    }
  }
}

/** The weights with bytes that can go to a thread whole, and their buffers. */
function movable(weights: StoredExpert): {
  readonly weights: StoredExpert;
  readonly buffers: ArrayBuffer[];
} {
  const buffers = new Set<ArrayBuffer>();
  const own = (bytes: Uint8Array): Uint8Array => {
    // A part of a larger buffer, or a buffer that goes already, is copied.
    const whole =
      bytes.byteLength === bytes.buffer.byteLength && !buffers.has(bytes.buffer as ArrayBuffer);
    const owned = whole ? bytes : bytes.slice();
    buffers.add(owned.buffer as ArrayBuffer);
    return owned;
  };
  const ownTensor = (tensor: StoredMatrix): StoredMatrix =>
    tensor.dtype === "MXFP4"
      ? { ...tensor, bytes: own(tensor.bytes), scales: own(tensor.scales) }
      : { ...tensor, bytes: own(tensor.bytes) };
  const parts = Object.entries<StoredMatrix | undefined>({ ...weights });
  const moved = parts.flatMap(([part, tensor]) =>
    tensor === undefined ? [] : [[part, ownTensor(tensor)] as const],
  );
  return { weights: Object.fromEntries(moved) as unknown as StoredExpert, buffers: [...buffers] };
}

function errorOf({ kind, message }: Extract<PackAnswer, { kind: string }>): Error {
  switch (kind) {
    case "WeightOverflowError":
      return new WeightOverflowError(message);
    case "RangeError":
      return new RangeError(message);
    default:
      return new Error(message);
  }
}
