/** The shard's queue: dispatches wait here while the device is busy, and those of one layer run together. */

import { setTimeout as pause } from "node:timers/promises";

import type { DispatchRows, ShardTimes } from "../core/wire.ts";
import { DispatchRefusedError } from "../core/wire.ts";
import { DispatchErrorCode } from "../proto/gen/switchyard/v1/expert.ts";
import type { SlotRows } from "./ffn.ts";
import { runFfn, toSlots } from "./ffn.ts";
import type { HeldLayer } from "./residency.ts";

/** A dispatch that waits, and how it is answered: once, by either function. */
export interface QueuedDispatch {
  /** Names the dispatch among all streams. */
  readonly stream: object;
  readonly dispatchId: number;
  readonly epoch: number;
  readonly layer: number;
  readonly payload: DispatchRows;
  /** Milliseconds of the batcher's clock. */
  readonly receivedAt: number;
  readonly deadlineAt: number;
  readonly onSums: (sums: Float32Array, times: ShardTimes) => void;
  readonly onError: (code: DispatchErrorCode, message: string) => void;
}

/** What a batcher needs. */
export interface BatcherOptions {
  readonly hiddenSize: number;
  /** Dispatches that wait at most. */
  readonly maxDispatches: number;
  /** Milliseconds, monotonic. */
  readonly now: () => number;
  /** The device has not answered a run within `runDeadlineMs`; nothing behind it can run either. */
  readonly onStuck: (error: Error) => void;
  readonly runDeadlineMs: number;
  /** What computes an epoch's layer. Throws DispatchRefusedError where the shard does not have it. */
  readonly hold: (epoch: number, layer: number) => HeldLayer;
}

/** Longest pause of work beside the runs, milliseconds: it may have taken long as it waited itself. */
const LONGEST_PAUSE_MS = 1_000;

/** Splits off what runs next: the oldest dispatch and the later ones of its epoch and layer, up to `maxRows` rows together. */
export function takeBatch(
  queue: readonly QueuedDispatch[],
  hiddenSize: number,
  maxRows: number,
): { readonly batch: QueuedDispatch[]; readonly rest: QueuedDispatch[] } {
  const batch: QueuedDispatch[] = [];
  const rest: QueuedDispatch[] = [];
  let rows = 0;
  for (const dispatch of queue) {
    const numRows = dispatch.payload.rows.length / hiddenSize;
    const first = batch[0] ?? dispatch;
    const fits = batch.length === 0 || rows + numRows <= maxRows;
    if (fits && dispatch.layer === first.layer && dispatch.epoch === first.epoch) {
      batch.push(dispatch);
      rows += numRows;
    } else {
      rest.push(dispatch);
    }
  }
  return { batch, rest };
}

/** Runs queued dispatches, one run on the device at a time. */
export class Batcher {
  readonly #options: BatcherOptions;
  #queue: QueuedDispatch[] = [];
  #tasks: (() => void)[] = [];
  #running: Promise<void> | undefined;
  /** When the last run ended; Infinity while one is on the device. */
  #lastRunAt = Number.NEGATIVE_INFINITY;

  constructor(options: BatcherOptions) {
    this.#options = options;
  }

  /** Dispatches that wait. */
  get waiting(): number {
    return this.#queue.length;
  }

  /** Queues a dispatch; answers OVERLOADED at once where the queue is full. */
  submit(dispatch: QueuedDispatch): void {
    const { maxDispatches } = this.#options;
    if (this.#queue.length >= maxDispatches) {
      dispatch.onError(
        DispatchErrorCode.DISPATCH_ERROR_CODE_OVERLOADED,
        `the shard's queue is full: ${this.#queue.length} dispatches wait, the limit is ${maxDispatches}`,
      );
      return;
    }
    this.#queue.push(dispatch);
    this.#running ??= this.#drain();
  }

  /** Drops a dispatch that still waits and answers it with DEADLINE. */
  cancel(stream: object, dispatchId: number): void {
    this.#drop(
      (dispatch) => dispatch.stream === stream && dispatch.dispatchId === dispatchId,
      "the router cancelled it",
    );
  }

  /** Drops all dispatches of a stream that still wait. */
  cancelStream(stream: object): void {
    this.#drop((dispatch) => dispatch.stream === stream, "its stream ended");
  }

  /**
   * Where there were runs since `startedAt` of the batcher's clock, waits as long again as work beside them took,
   * LONGEST_PAUSE_MS at most: they may need the cores that it takes. Rejects with the signal's AbortError.
   */
  async giveWay(startedAt: number, workMs: number, signal?: AbortSignal): Promise<void> {
    if (this.#lastRunAt < startedAt) return;
    await pause(Math.min(LONGEST_PAUSE_MS, workMs), undefined, { signal });
  }

  /** Does something while no run is on the device: before the next one, or soon where there is none. Rejects with what it throws. */
  between<T>(task: () => T): Promise<T> {
    const { promise, resolve, reject } = Promise.withResolvers<T>();
    this.#tasks.push(() => {
      try {
        resolve(task());
      } catch (error) {
        reject(error);
      }
    });
    this.#running ??= this.#drain();
    return promise;
  }

  /** Settles when no run is on the device; those that wait then are started after. */
  async idle(): Promise<void> {
    await this.#running;
  }

  #drop(matches: (dispatch: QueuedDispatch) => boolean, reason: string): void {
    const dropped = this.#queue.filter(matches);
    if (dropped.length === 0) return;
    this.#queue = this.#queue.filter((dispatch) => !matches(dispatch));
    for (const dispatch of dropped) {
      dispatch.onError(DispatchErrorCode.DISPATCH_ERROR_CODE_DEADLINE, `dropped: ${reason}`);
    }
  }

  async #drain(): Promise<void> {
    // Dispatches that arrive in one turn of the event loop are seen together.
    await new Promise((resolve) => setImmediate(resolve));
    for (;;) {
      const tasks = this.#tasks;
      this.#tasks = [];
      for (const task of tasks) task();
      if (this.#queue.length > 0) await this.#runNext();
      else if (this.#tasks.length === 0) break;
    }
    this.#running = undefined;
  }

  async #runNext(): Promise<void> {
    const { hiddenSize, now } = this.#options;
    const [head] = this.#queue;
    let held: HeldLayer;
    try {
      held = this.#options.hold(head.epoch, head.layer);
    } catch (error) {
      this.#queue.shift();
      refuse(head, error);
      return;
    }
    const { batch, rest } = takeBatch(this.#queue, hiddenSize, held.device.maxRows);
    this.#queue = rest;
    const startedAt = now();
    const ready: { readonly dispatch: QueuedDispatch; readonly input: SlotRows }[] = [];
    for (const dispatch of batch) {
      const input = prepare(dispatch, held, startedAt);
      if (input !== undefined) ready.push({ dispatch, input });
    }
    if (ready.length === 0) return;
    const { runDeadlineMs, onStuck } = this.#options;
    this.#lastRunAt = Number.POSITIVE_INFINITY;
    const timer = setTimeout(
      () => onStuck(new Error(`the device did not end a run within ${runDeadlineMs} ms`)),
      runDeadlineMs,
    );
    try {
      const inputs = ready.map(({ input }) => input);
      const sums = await runFfn(head.layer, hiddenSize, inputs, held);
      const computeUs = Math.round((now() - startedAt) * 1000);
      for (const [index, { dispatch }] of ready.entries()) {
        const queueUs = Math.round((startedAt - dispatch.receivedAt) * 1000);
        if (allFinite(sums[index])) dispatch.onSums(sums[index], { queueUs, computeUs });
        else refuseSums(dispatch);
      }
    } catch (error) {
      for (const { dispatch } of ready) refuse(dispatch, error);
    } finally {
      clearTimeout(timer);
      this.#lastRunAt = now();
    }
  }
}

/** The dispatch with slots, or undefined where it was answered with an error instead. */
function prepare(dispatch: QueuedDispatch, held: HeldLayer, now: number): SlotRows | undefined {
  if (now >= dispatch.deadlineAt) {
    const lateMs = Math.round(now - dispatch.deadlineAt);
    dispatch.onError(
      DispatchErrorCode.DISPATCH_ERROR_CODE_DEADLINE,
      `the deadline passed ${lateMs} ms before the computation began`,
    );
    return undefined;
  }
  try {
    return toSlots(dispatch.layer, dispatch.payload, held);
  } catch (error) {
    refuse(dispatch, error);
    return undefined;
  }
}

/** Whether every value is finite. */
function allFinite(values: Float32Array): boolean {
  for (let i = 0; i < values.length; i++) if (!Number.isFinite(values[i])) return false;
  return true;
}

/** Answers a dispatch whose sums are not finite: by whose fault. */
function refuseSums(dispatch: QueuedDispatch): void {
  const { rows, topkWeights } = dispatch.payload;
  const { layer, onError } = dispatch;
  if (allFinite(rows) && allFinite(topkWeights)) {
    const text = `layer ${layer}: the device computed sums that are not finite`;
    onError(DispatchErrorCode.DISPATCH_ERROR_CODE_WRONG_RESULT, text);
  } else {
    const text = `layer ${layer}: hidden states or weights are not finite`;
    onError(DispatchErrorCode.DISPATCH_ERROR_CODE_INVALID, text);
  }
}

function refuse(dispatch: QueuedDispatch, error: unknown): void {
  if (error instanceof DispatchRefusedError) dispatch.onError(error.code, error.message);
  else dispatch.onError(DispatchErrorCode.DISPATCH_ERROR_CODE_INTERNAL, String(error));
}
