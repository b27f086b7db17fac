/** One stream to one shard, from hello to its end. It is never used again after it ended. */

import type { ClientDuplexStream } from "@grpc/grpc-js";
import { makeGenericClientConstructor } from "@grpc/grpc-js";

import { expertServiceDefinition } from "../../../core/expert-stream.ts";
import { channelCredentials, channelOptions } from "../../../core/platform/grpc.ts";
import type { DispatchHeader, PackedDispatch, ShardTimes } from "../../../core/wire.ts";
import {
  decodePartialSum,
  DispatchRefusedError,
  encodeDispatch,
  statusCrc,
} from "../../../core/wire.ts";
import type { ShardPlacement, PlacementAck } from "../../../proto/gen/switchyard/v1/cluster.ts";
import {
  DispatchErrorCode,
  type PartialSum,
  type RouterHello,
  type RouterMessage,
  type ShardHello,
  type ShardMessage,
  type ShardStatus,
} from "../../../proto/gen/switchyard/v1/expert.ts";
import {
  DispatchFailedError,
  DispatchTimeoutError,
  PlacementRefusedError,
  ShardLostError,
} from "../errors.ts";
import { MessageCounts } from "./message-counts.ts";

const ExpertClient = makeGenericClientConstructor(expertServiceDefinition, "ExpertService");

type Call = ClientDuplexStream<RouterMessage, ShardMessage>;

/** Dispatches without an answer at most; an engine has a few. */
const MAX_PENDING = 1024;

/** A dispatch that fails for its time after so long without a word of the shard's ends the stream. */
const SILENT_MS = 1_900;

/** A dispatch on its way. */
export interface DispatchHandle {
  /**
   * Partial sums [numRows, hiddenSize]. Rejects with ShardLostError, DispatchTimeoutError, DispatchFailedError, or with
   * the reason of `cancel`.
   */
  readonly answer: Promise<DispatchAnswer>;
  /** Payload bytes that went out. */
  readonly bytesOut: number;
  /** Stops waiting and tells the shard. */
  cancel(reason: unknown): void;
}

/** What a shard answered. */
export interface DispatchAnswer {
  readonly sums: Float32Array;
  readonly bytesIn: number;
  readonly times: ShardTimes;
}

interface Pending {
  readonly header: DispatchHeader;
  readonly numRows: number;
  readonly sentAt: number;
  readonly timer: NodeJS.Timeout;
  resolve(answer: DispatchAnswer): void;
  reject(error: unknown): void;
}

/** A promise that someone else settles. */
type Waiting<T> = PromiseWithResolvers<T> & { readonly timer: NodeJS.Timeout };

/** A stream to a shard. */
export class ShardStream {
  /** Resolves with the reason when the stream has ended; every pending dispatch is rejected by then. */
  readonly ended: Promise<string>;
  readonly #shard: string;
  readonly #client: InstanceType<typeof ExpertClient>;
  readonly #call: Call;
  readonly #pending = new Map<number, Pending>();
  readonly #resolveEnded: (reason: string) => void;
  readonly #onStatus: ((status: ShardStatus) => void) | undefined;
  #hello: Waiting<ShardHello> | undefined;
  /** By epoch, in the order in which they were sent: one that was given up may be sent again. */
  readonly #acks = new Map<number, Waiting<PlacementAck>[]>();
  readonly #counts = new MessageCounts();
  #endReason: string | undefined;
  #nextDispatchId = 1;
  #lastMessageAt = performance.now();

  /** Connects to `address`; `shard` names it in errors. `onStatus` hears what the shard says of itself. */
  constructor(address: string, shard: string, onStatus?: (status: ShardStatus) => void) {
    this.#shard = shard;
    this.#onStatus = onStatus;
    const { promise, resolve } = Promise.withResolvers<string>();
    this.ended = promise;
    this.#resolveEnded = resolve;
    this.#client = new ExpertClient(address, channelCredentials(), channelOptions);
    this.#call = (this.#client.connect as () => Call).call(this.#client);
    this.#call.on("data", (message: ShardMessage) => this.#receive(message));
    this.#call.on("error", (error: Error & { details?: string }) =>
      this.end((error.details || error.message).replace(/ Resolution note: $/, "")),
    );
    this.#call.on("end", () => this.end("the shard ended the stream"));
  }

  /** Says hello and waits for the shard's. Rejects with ShardLostError when the stream ends or time is over. */
  hello(hello: RouterHello, timeoutMs: number): Promise<ShardHello> {
    const waiting = this.#wait<ShardHello>(`no hello within ${timeoutMs} ms`, timeoutMs);
    this.#hello = waiting;
    this.#send({ $case: "hello", value: hello });
    return waiting.promise;
  }

  /** Milliseconds of performance.now() when the last message came; before the first, when the stream was opened. */
  get lastMessageAt(): number {
    return this.#lastMessageAt;
  }

  /**
   * Sends a placement and waits until it is resident. Rejects with PlacementRefusedError, or with ShardLostError when the
   * stream ends or time is over.
   */
  place(placement: ShardPlacement, timeoutMs: number): Promise<PlacementAck> {
    const { epoch } = placement;
    const text = `placement ${epoch} is not acknowledged within ${timeoutMs} ms`;
    const waiting = this.#wait<PlacementAck>(text, timeoutMs);
    const others = this.#acks.get(epoch) ?? [];
    this.#acks.set(epoch, [...others, waiting]);
    this.#send({ $case: "placement", value: placement });
    return waiting.promise;
  }

  /** Tells the shard that nothing is dispatched to an epoch below this one any more, nor to newer ones that were given up. */
  release(oldestLiveEpoch: number, abandonedEpochs: readonly number[] = []): void {
    const value = { oldestLiveEpoch, abandonedEpochs: [...abandonedEpochs] };
    this.#send({ $case: "release", value });
  }

  /** Tells the shard that it is to leave, or to stay after all. */
  drain(cancel: boolean): void {
    this.#send({ $case: "drain", value: { cancel } });
  }

  /** Tells the shard, which is to leave, why no other has room for what it holds; empty: one has. */
  leavingOutlook(unplaceable: string): void {
    this.#send({ $case: "leavingOutlook", value: { unplaceable } });
  }

  /** Sends rows; the shard has `timeoutMs` to answer. */
  dispatch(header: Omit<DispatchHeader, "dispatchId">, payload: PackedDispatch): DispatchHandle {
    const dispatchId = this.#nextDispatchId++;
    const { promise, resolve, reject } = Promise.withResolvers<DispatchAnswer>();
    const lost = this.#lostReason();
    if (lost !== undefined) {
      reject(lost);
      return { answer: promise, bytesOut: 0, cancel: () => {} };
    }
    const full = { ...header, dispatchId };
    const message = encodeDispatch(full, payload);
    const timer = setTimeout(() => this.#timeOut(dispatchId), header.timeoutMs);
    const sentAt = performance.now();
    const { numRows } = message;
    this.#pending.set(dispatchId, { header: full, numRows, sentAt, timer, resolve, reject });
    const { hiddenStates, expertIds, topkWeights, rowScales } = message;
    const bytesOut = hiddenStates.length + expertIds.length + topkWeights.length + rowScales.length;
    this.#send({ $case: "dispatch", value: message }, bytesOut);
    return {
      answer: promise,
      bytesOut,
      cancel: (reason) => {
        if (this.#take(dispatchId) === undefined) return;
        this.#send({ $case: "cancel", value: { dispatchId } });
        reject(reason);
      },
    };
  }

  /** Ends the stream: everything that waits is rejected with ShardLostError. */
  end(reason: string): void {
    if (this.#endReason !== undefined) return;
    this.#endReason = reason;
    const error = new ShardLostError(this.#shard, reason);
    for (const dispatchId of this.#pending.keys()) this.#take(dispatchId)?.reject(error);
    for (const waiting of [this.#hello, ...[...this.#acks.values()].flat()]) {
      clearTimeout(waiting?.timer);
      waiting?.reject(error);
    }
    this.#call.cancel();
    this.#client.close();
    this.#resolveEnded(reason);
  }

  #wait<T>(timeoutText: string, timeoutMs: number): Waiting<T> {
    const waiting = Promise.withResolvers<T>();
    const timer = setTimeout(() => this.end(timeoutText), timeoutMs);
    if (this.#endReason !== undefined) {
      clearTimeout(timer);
      waiting.reject(new ShardLostError(this.#shard, this.#endReason));
    }
    return { ...waiting, timer };
  }

  #lostReason(): ShardLostError | undefined {
    if (this.#endReason !== undefined) return new ShardLostError(this.#shard, this.#endReason);
    if (this.#pending.size < MAX_PENDING) return undefined;
    const text = `${this.#pending.size} dispatches wait already, the limit is ${MAX_PENDING}`;
    return new ShardLostError(this.#shard, text);
  }

  /** `bytes`: about how long it is, where it may be long. */
  #send(kind: NonNullable<RouterMessage["kind"]>, bytes = 0): void {
    if (this.#endReason !== undefined) return;
    const full = this.#counts.sent(bytes);
    if (full === undefined) this.#call.write({ kind });
    else this.end(full);
  }

  #take(dispatchId: number): Pending | undefined {
    const pending = this.#pending.get(dispatchId);
    if (pending === undefined) return undefined;
    clearTimeout(pending.timer);
    this.#pending.delete(dispatchId);
    return pending;
  }

  /** Who waits for the answer to a placement; where nobody does, the stream is ended with what it `does`. */
  #takeAck(epoch: number, does: string): Waiting<PlacementAck> | undefined {
    const [waiting, ...others] = this.#acks.get(epoch) ?? [];
    if (others.length > 0) this.#acks.set(epoch, others);
    else this.#acks.delete(epoch);
    clearTimeout(waiting?.timer);
    if (waiting === undefined) this.end(`${does} placement ${epoch}, which was not sent`);
    return waiting;
  }

  #timeOut(dispatchId: number): void {
    const pending = this.#take(dispatchId);
    if (pending === undefined) return;
    const { layer, timeoutMs } = pending.header;
    pending.reject(new DispatchTimeoutError(this.#shard, layer, timeoutMs));
    const silentMs = performance.now() - Math.max(this.#lastMessageAt, pending.sentAt);
    if (silentMs < SILENT_MS) {
      this.#send({ $case: "cancel", value: { dispatchId } });
    } else {
      // Not a word since it was sent: whoever waits behind it need not find out one by one.
      this.end(`no message for ${Math.round(silentMs)} ms`);
    }
  }

  #receive({ kind }: ShardMessage): void {
    if (this.#endReason !== undefined) return;
    this.#lastMessageAt = performance.now();
    this.#counts.received();
    if (kind === undefined) {
      this.end("a message of an unknown kind");
    } else if (kind.$case === "hello") {
      clearTimeout(this.#hello?.timer);
      this.#hello?.resolve(kind.value);
    } else if (kind.$case === "placementAck") {
      this.#takeAck(kind.value.epoch, "acknowledges")?.resolve(kind.value);
    } else if (kind.$case === "placementRefused") {
      const { epoch, reason } = kind.value;
      const refused = new PlacementRefusedError(this.#shard, epoch, reason);
      this.#takeAck(epoch, "refuses")?.reject(refused);
    } else if (kind.$case === "status") {
      const fault = this.#faultOf(kind.value);
      if (fault === undefined) this.#onStatus?.(kind.value);
      else this.end(fault);
    } else if (kind.$case === "partialSum") {
      this.#onPartialSum(kind.value);
    } else if (kind.$case === "error") {
      const { dispatchId, code, message } = kind.value;
      const pending = this.#take(dispatchId);
      pending?.reject(new DispatchFailedError(this.#shard, pending.header.layer, code, message));
    }
  }

  /** Why the stream can not be trusted any more, by what the shard says of itself. */
  #faultOf(status: ShardStatus): string | undefined {
    const crc = statusCrc(status);
    if (crc !== status.crc32) {
      return `crc32: the shard's status has ${crc.toString(16)}, it states ${status.crc32.toString(16)}`;
    }
    return this.#counts.judge(status, this.#lastMessageAt);
  }

  #onPartialSum(message: PartialSum): void {
    // Absent: it was cancelled or came too late.
    const pending = this.#take(message.dispatchId);
    if (pending === undefined) return;
    const { layer, hiddenSize } = pending.header;
    try {
      const sums = decodePartialSum(message, pending.numRows, hiddenSize);
      if (!allFinite(sums)) {
        const code = DispatchErrorCode.DISPATCH_ERROR_CODE_WRONG_RESULT;
        throw new DispatchRefusedError(code, "partial sums that are not finite");
      }
      pending.resolve({
        sums,
        bytesIn: message.sums.length,
        times: { queueUs: message.queueUs, computeUs: message.computeUs },
      });
    } catch (error) {
      if (!(error instanceof DispatchRefusedError)) throw error;
      pending.reject(new DispatchFailedError(this.#shard, layer, error.code, error.message));
    }
  }
}

function allFinite(values: Float32Array): boolean {
  // Infinities and NaN survive any sum; f64 holds every other.
  let sum = 0;
  for (let i = 0; i < values.length; i++) sum += values[i];
  return Number.isFinite(sum);
}
