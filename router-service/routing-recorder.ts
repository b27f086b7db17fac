/** Records which experts tokens chose, as `switchyard plan --trace` reads it: a safetensors file that grows. */

import { type FileHandle, open } from "node:fs/promises";

import { errorMessage } from "../core/error-message.ts";
import type { Log } from "../core/platform/log.ts";
import type { RoutingShape } from "../core/statistics/routed-step.ts";
import type { StepReport } from "./engine/observer.ts";
import { createStepRest, type RestMs } from "./step-rest.ts";

/** Bytes of the file before its tensors: room for any header. */
const HEADER_BYTES = 256;

/** Bytes of `rest_ms`: what a step takes beside its MoE layers, of decodes alone and with prompts; NaN: not known. */
const REST_BYTES = 8;

/** Milliseconds between two writes. */
const WRITE_INTERVAL_MS = 1_000;

/** Bytes that wait to be written at most: tokens of steps beyond them are left out. */
const MAX_WAITING_BYTES = 16 * 1024 * 1024;

/** What is recorded, and where. */
export interface RecorderOptions {
  /** Must not exist. */
  readonly file: string;
  readonly shape: RoutingShape;
  /** Tokens after which the recording ends. */
  readonly maxTokens: number;
  readonly log: Pick<Log, "info" | "warn">;
}

/** What is recorded of a step. */
type RecordedStep = Pick<
  StepReport,
  "numTokens" | "routing" | "startedAt" | "finishedAt" | "sequences"
>;

/** A recording. */
export interface RoutingRecorder {
  /** An engine's observer: copies a step's ids and returns at once. */
  readonly observer: { readonly onStep: (step: RecordedStep) => void };
  /** Told of every MoE layer that was computed just now, and how long that took. */
  onLayer(seconds: number): void;
  /** Writes what waits and ends the recording. Never rejects. */
  close(): Promise<void>;
}

/** Starts a recording. Rejects with an Error that names the file where that can not be made. */
export async function startRoutingRecorder(options: RecorderOptions): Promise<RoutingRecorder> {
  const { file, shape } = options;
  try {
    const handle = await open(file, "wx");
    try {
      await writeAll(handle, headerOf(shape, 0, { decode: undefined, prefill: undefined }), 0);
    } catch (error) {
      await handle.close();
      throw error;
    }
    return new FileRecorder(options, handle);
  } catch (error) {
    const reason =
      (error as { code?: string }).code === "EEXIST" ? "the file exists" : errorMessage(error);
    throw new Error(`--record-routing ${file}: ${reason}`, { cause: error });
  }
}

/** Ids are of one byte where that is enough. */
function bytesPerId({ numExperts }: RoutingShape): 1 | 2 {
  return numExperts <= 256 ? 1 : 2;
}

/** The file's begin with `tokens` tokens: the length of the JSON as u64, the JSON padded with spaces, and `rest_ms`. */
function headerOf(shape: RoutingShape, tokens: number, rest: RestMs): Buffer {
  const dims = [tokens, shape.layers.length, shape.topK];
  const bytes = dims.reduce((product, one) => product * one, bytesPerId(shape));
  const dtype = bytesPerId(shape) === 1 ? "U8" : "U16";
  const restMs = { dtype: "F32", shape: [2], data_offsets: [0, REST_BYTES] };
  const topkIds = { dtype, shape: dims, data_offsets: [REST_BYTES, REST_BYTES + bytes] };
  const header = Buffer.alloc(HEADER_BYTES + REST_BYTES, " ");
  header.writeBigUInt64LE(BigInt(HEADER_BYTES - 8));
  header.write(JSON.stringify({ rest_ms: restMs, topk_ids: topkIds }), 8);
  header.writeFloatLE(rest.decode ?? Number.NaN, HEADER_BYTES);
  header.writeFloatLE(rest.prefill ?? Number.NaN, HEADER_BYTES + 4);
  return header;
}

/** Writes all bytes at a place of the file: a write to a disk that is nearly full takes some of them, and only the next one fails. */
async function writeAll(handle: FileHandle, bytes: Buffer, at: number): Promise<void> {
  for (let done = 0; done < bytes.length;) {
    done += (await handle.write(bytes, done, bytes.length - done, at + done)).bytesWritten;
  }
}

class FileRecorder implements RoutingRecorder {
  readonly observer = {
    onStep: (step: RecordedStep) => {
      if (!this.#open) return;
      this.#rest.onStep(step);
      this.#add(step);
    },
  };
  readonly #rest = createStepRest();
  readonly #options: RecorderOptions;
  readonly #handle: FileHandle;
  readonly #timer: NodeJS.Timeout;
  readonly #bytesPerToken: number;
  #waiting: Buffer[] = [];
  #waitingBytes = 0;
  #taken = 0;
  #written = 0;
  #leftOut = 0;
  #writing: Promise<void> = Promise.resolve();
  #open = true;
  #failed = false;

  constructor(options: RecorderOptions, handle: FileHandle) {
    const { layers, topK } = options.shape;
    this.#options = options;
    this.#handle = handle;
    this.#bytesPerToken = layers.length * topK * bytesPerId(options.shape);
    this.#timer = setInterval(() => this.#flush(), WRITE_INTERVAL_MS);
    this.#timer.unref();
  }

  onLayer(seconds: number): void {
    if (this.#open) this.#rest.onLayer(seconds * 1000);
  }

  async close(): Promise<void> {
    this.#end();
    await this.#writing;
  }

  /** Copies the ids of the step's tokens, one token's layers after the other. */
  #add({ numTokens, routing }: RecordedStep): void {
    const { shape, maxTokens } = this.#options;
    const { layers, topK, numExperts } = shape;
    const tokens = Math.min(numTokens, maxTokens - this.#taken);
    const ofLayers = layers.flatMap((layer) => routing.get(layer) ?? []);
    const fits = ofLayers.every((one) => one.topK === topK && one.ids.length >= tokens * topK);
    const bytes = tokens * this.#bytesPerToken;
    if (
      !fits ||
      ofLayers.length < layers.length ||
      this.#waitingBytes + bytes > MAX_WAITING_BYTES
    ) {
      this.#leftOut += tokens;
      return;
    }
    const buffer = Buffer.alloc(bytes);
    const ids =
      numExperts <= 256 ? buffer : new Uint16Array(buffer.buffer, buffer.byteOffset, bytes / 2);
    let at = 0;
    for (let token = 0; token < tokens; token++) {
      for (const one of ofLayers) {
        for (let k = token * topK; k < (token + 1) * topK; k++) ids[at++] = one.ids[k];
      }
    }
    this.#waiting.push(buffer);
    this.#waitingBytes += bytes;
    this.#taken += tokens;
    if (this.#taken === maxTokens) this.#end();
  }

  #flush(): void {
    if (this.#waiting.length === 0) return;
    const bytes = Buffer.concat(this.#waiting);
    this.#waiting = [];
    this.#writing = this.#append(bytes, this.#writing);
  }

  /** Writes tokens, then how many there are now: who reads between two appends finds all before. Never rejects. */
  async #append(bytes: Buffer, before: Promise<void>): Promise<void> {
    await before;
    if (this.#failed) return;
    try {
      const written = this.#written + bytes.length / this.#bytesPerToken;
      await writeAll(this.#handle, bytes, this.#fileBytes());
      await writeAll(this.#handle, headerOf(this.#options.shape, written, this.#rest.restMs()), 0);
      this.#written = written;
    } catch (error) {
      this.#fail(error);
    }
    this.#waitingBytes -= bytes.length;
  }

  #end(): void {
    if (!this.#open) return;
    this.#open = false;
    clearInterval(this.#timer);
    this.#flush();
    this.#writing = this.#finish(this.#writing);
  }

  async #finish(before: Promise<void>): Promise<void> {
    await before;
    const { file, log } = this.#options;
    try {
      // What was begun and has failed would make the file one that nobody reads.
      if (this.#failed) await this.#handle.truncate(this.#fileBytes()).catch(() => {});
      await this.#handle.close();
    } catch (error) {
      if (!this.#failed) this.#fail(error);
    }
    if (this.#failed) return;
    log.info({ file, tokens: this.#written, leftOut: this.#leftOut }, "routing recorded");
  }

  #fileBytes(): number {
    return HEADER_BYTES + REST_BYTES + this.#written * this.#bytesPerToken;
  }

  /** Serving goes on without the recording; the file keeps what was written before. */
  #fail(error: unknown): void {
    const { file, log } = this.#options;
    log.warn({ file, err: error }, "routing is not recorded any more");
    this.#failed = true;
    this.#waiting = [];
    this.#end();
  }
}
