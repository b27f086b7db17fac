/** The remote half of `runExperts`: rows out to the shards that hold their experts, partial sums back. */

import { errorMessage } from "../../core/error-message.ts";
import { packRows, type WireSetting } from "../../core/wire-rows.ts";
import type { RunExperts, StepRouting } from "../engine/run-experts.ts";
import { combine, splitByShard, type ShardRows } from "./dispatch.ts";
import { DispatchFailedError, DispatchTimeoutError, ShardLostError } from "./errors.ts";
import type { ClusterPlan } from "./plan.ts";
import type { ShardClient } from "./shard-client.ts";
import type { DispatchAnswer, DispatchHandle } from "./shard-stream.ts";
import { startDispatchSpan, type DispatchSpan } from "./spans.ts";

/** How a dispatch ended; cancelled: its step was aborted or another dispatch of the layer failed. */
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

/** What the remote experts need of their cluster. */
export interface RemoteExpertsOptions {
  readonly hiddenSize: number;
  readonly wire: WireSetting;
  readonly dispatchTimeoutMs: number;
  readonly onDispatch?: (report: DispatchReport) => void;
  /** Who holds what; undefined before it is decided. */
  readonly plan: () => ClusterPlan | undefined;
  /** The shard with this index in the cluster's addresses. */
  readonly shard: (index: number) => ShardClient;
  /** Why nothing can be dispatched. */
  readonly unavailable: () => Error;
}

/** A dispatch of one layer to one shard. */
interface Sent {
  readonly handle: DispatchHandle;
  readonly answer: Promise<DispatchAnswer>;
}

/** Makes `runExperts` over shards; a dispatch that fails cancels the others of its layer and rejects at once. */
export function createRemoteExperts(options: RemoteExpertsOptions): RunExperts {
  return async (layer, hiddenStates, routing) => {
    const { rows, routing: chosen } = await routing.read();
    routing.signal.throwIfAborted();
    const plan = options.plan();
    const locations = plan?.locations.get(layer);
    if (plan === undefined) throw options.unavailable();
    if (locations === undefined) throw new RangeError(`layer ${layer} is not an MoE layer`);
    const { hiddenSize } = options;
    const packed = packRows(rows, hiddenSize, options.wire);
    const parts = splitByShard(packed, chosen, locations, plan.shards.length);
    const sent = send(options, plan, layer, routing, parts);
    const cancelAll = (reason: unknown) => {
      for (const { handle } of sent) handle.cancel(reason);
    };
    const onAbort = () => cancelAll(routing.signal.reason);
    routing.signal.addEventListener("abort", onAbort);
    try {
      const answers = await Promise.all(sent.map(({ answer }) => answer));
      const sums = answers.map((answer, index) => ({
        tokens: parts[index].tokens,
        sums: answer.sums,
      }));
      return { kind: "host", values: combine(hiddenStates.numTokens, hiddenSize, sums) };
    } catch (error) {
      cancelAll(new DOMException("another dispatch of the layer failed", "AbortError"));
      throw error;
    } finally {
      routing.signal.removeEventListener("abort", onAbort);
    }
  };
}

/** Sends every part. Throws ShardLostError before anything is sent where a shard is away. */
function send(
  options: RemoteExpertsOptions,
  plan: ClusterPlan,
  layer: number,
  routing: StepRouting,
  parts: readonly ShardRows[],
): Sent[] {
  const streams = parts.map(({ shard }) => {
    const { state, address } = options.shard(plan.shards[shard].index);
    if (state.kind === "ready") return state.stream;
    throw new ShardLostError(`shard ${address}`, state.reason);
  });
  const sent: Sent[] = [];
  const sendPart = (part: ShardRows, index: number): Sent => {
    const { rank } = plan.shards[part.shard];
    const span = startDispatchSpan(routing.traceContext, {
      "moe.layer": layer,
      "moe.shard.rank": rank,
      "moe.rows": part.tokens.length,
      "moe.placement.epoch": plan.epoch,
    });
    const header = {
      epoch: plan.epoch,
      layer,
      timeoutMs: options.dispatchTimeoutMs,
      hiddenSize: options.hiddenSize,
      topK: routing.topK,
      traceparent: span?.traceparent ?? "",
    };
    const startedAt = performance.now();
    const handle = streams[index].dispatch(header, part);
    const answer = observe(handle, span, (outcome, bytesIn) =>
      options.onDispatch?.({
        rank,
        rows: part.tokens.length,
        bytesOut: handle.bytesOut,
        bytesIn,
        seconds: (performance.now() - startedAt) / 1000,
        outcome,
      }),
    );
    // Handled by whoever awaits the layer; until then it may fail unseen.
    answer.catch(() => {});
    return { handle, answer };
  };
  try {
    for (const [index, part] of parts.entries()) sent.push(sendPart(part, index));
  } catch (error) {
    for (const { handle } of sent) handle.cancel(error);
    throw error;
  }
  return sent;
}

async function observe(
  handle: DispatchHandle,
  span: DispatchSpan | undefined,
  report: (outcome: DispatchOutcome, bytesIn: number) => void,
): Promise<DispatchAnswer> {
  try {
    const answer = await handle.answer;
    report("ok", answer.bytesIn);
    span?.end({ "moe.dispatch.bytes": handle.bytesOut + answer.bytesIn });
    return answer;
  } catch (error) {
    report(outcomeOf(error), 0);
    span?.fail(errorMessage(error));
    throw error;
  }
}

function outcomeOf(error: unknown): DispatchOutcome {
  if (error instanceof DispatchTimeoutError) return "timeout";
  if (error instanceof ShardLostError) return "lost";
  if (error instanceof DispatchFailedError) return "refused";
  return "cancelled";
}
