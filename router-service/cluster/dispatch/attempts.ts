/** One dispatch of a layer's rows to one shard: sent, timed, traced and reported. */

import { startDispatchSpan } from "../../../core/dispatch-span.ts";
import { errorMessage } from "../../../core/error-message.ts";
import type { StepRouting } from "../../engine/run-experts.ts";
import type { ShardRows } from "./dispatch.ts";
import { DispatchFailedError, DispatchTimeoutError, ShardLostError } from "../errors.ts";
import type { Directory, Reach } from "../reach.ts";
import { type RowsHistory, timeoutMs } from "./resend.ts";
import type { Scope } from "./scope.ts";
import type { DispatchAnswer } from "../shards/shard-stream.ts";

/** How a dispatch ended; cancelled: its step was aborted, or another copy answered first. */
export type DispatchOutcome = "ok" | "timeout" | "lost" | "refused" | "cancelled";

/** One dispatch, for metrics. */
export interface DispatchReport {
  readonly rank: number;
  readonly rows: number;
  /** Payload bytes to the shard. */
  readonly bytesOut: number;
  /** Payload bytes from the shard; 0 where it did not answer. */
  readonly bytesIn: number;
  /** From the send to the answer. */
  readonly seconds: number;
  readonly outcome: DispatchOutcome;
}

/** Partial sums of some pairs. */
export interface Part {
  readonly rank: number;
  /** Tokens of the batch that the sums are of [numRows], ascending. */
  readonly tokens: Uint32Array;
  /** Indices into the routing's ids, ascending. */
  readonly pairs: Uint32Array;
  /** [numRows, hiddenSize] */
  readonly sums: Float32Array;
}

/** A dispatch on its way. */
export interface Attempt {
  /** Rejects as DispatchHandle.answer does. */
  readonly answer: Promise<Part>;
  /** Forecast when it was sent. */
  readonly expectedSeconds: number | undefined;
  /** Stops waiting and tells the shard. */
  cancel(reason: unknown): void;
}

/** What dispatches of a layer have in common. */
export interface AttemptsOptions {
  readonly layer: number;
  readonly hiddenSize: number;
  readonly dispatchTimeoutMs: number;
  readonly directory: Pick<Directory, "begin">;
  readonly onDispatch?: (report: DispatchReport) => void;
}

/** Sends the rows of one layer. */
export class Attempts {
  readonly #options: AttemptsOptions;

  constructor(options: AttemptsOptions) {
    this.#options = options;
  }

  /** Sends rows; they are cancelled with the scope. */
  start(
    reach: Reach,
    part: ShardRows,
    epoch: number,
    history: RowsHistory,
    { topK, traceContext }: StepRouting,
    scope: Scope,
  ): Attempt {
    const { layer, hiddenSize, dispatchTimeoutMs, directory, onDispatch } = this.#options;
    const { rank, tokens, pairs } = part;
    const rows = tokens.length;
    const bytes = part.rows.bytes.length + rows * hiddenSize * 4;
    const expectedSeconds = reach.expectedSeconds(bytes, pairs.length);
    const span = startDispatchSpan("router", traceContext, { layer, rank, rows, epoch });
    const header = {
      epoch,
      layer,
      timeoutMs: timeoutMs(expectedSeconds, dispatchTimeoutMs, history),
      hiddenSize,
      topK,
      traceparent: span?.traceparent ?? "",
    };
    const startedAt = performance.now();
    const handle = reach.dispatch(header, part);
    const end = directory.begin(epoch);
    const cancel = (reason: unknown) => handle.cancel(reason);
    scope.add(cancel);
    const report = (outcome: DispatchOutcome, bytesIn: number) => {
      scope.delete(cancel);
      end();
      const seconds = (performance.now() - startedAt) / 1000;
      onDispatch?.({ rank, rows, bytesOut: handle.bytesOut, bytesIn, seconds, outcome });
      return seconds;
    };
    const take = ({ sums, bytesIn, times }: DispatchAnswer): Part => {
      const seconds = report("ok", bytesIn);
      reach.observe({
        bytes,
        pairs: pairs.length,
        seconds,
        queueSeconds: times.queueUs / 1e6,
        computeSeconds: times.computeUs / 1e6,
      });
      span?.end({ bytes: handle.bytesOut + bytesIn });
      return { rank, tokens, pairs, sums };
    };
    const fail = (error: unknown): never => {
      report(outcomeOf(error), 0);
      span?.fail(errorMessage(error));
      throw error;
    };
    return { answer: handle.answer.then(take, fail), expectedSeconds, cancel };
  }
}

function outcomeOf(error: unknown): DispatchOutcome {
  if (error instanceof DispatchTimeoutError) return "timeout";
  if (error instanceof ShardLostError) return "lost";
  if (error instanceof DispatchFailedError) return "refused";
  return "cancelled";
}
