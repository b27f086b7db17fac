/** The remote half of `runExperts`: rows out to the shards that hold their experts, partial sums back. */

import { errorMessage } from "../../core/error-message.ts";
import { packRows, type WireSetting } from "../../core/wire-rows.ts";
import type { ShardTimes } from "../../core/wire.ts";
import type { RunExperts, StepRouting } from "../engine/run-experts.ts";
import type { Placement } from "../../core/placement/placement.ts";
import { chooseCopies, NO_RANK } from "./choose-copies.ts";
import { allPairs, combine, splitByRank, type ShardRows } from "./dispatch.ts";
import { DispatchFailedError, DispatchTimeoutError, ShardLostError } from "./errors.ts";
import type { Member } from "./member.ts";
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
  readonly placement: () => Placement | undefined;
  readonly shard: (rank: number) => Member | undefined;
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
    const placement = options.placement();
    if (placement === undefined) throw options.unavailable();
    const { epoch } = placement;
    const replicas = placement.layers.get(layer);
    if (replicas === undefined) throw new RangeError(`layer ${layer} is not an MoE layer`);
    const { hiddenSize } = options;
    const packed = packRows(rows, hiddenSize, options.wire);
    const pairs = allPairs(chosen, replicas.length);
    const usable = (rank: number) => options.shard(rank)?.streamOf(epoch) !== undefined;
    const ranks = chooseCopies(chosen, pairs, replicas, usable);
    const homeless = ranks.indexOf(NO_RANK);
    if (homeless >= 0) {
      const expert = chosen.ids[pairs[homeless]];
      throw lostCopies(options, epoch, layer, expert, replicas[expert][0].rank);
    }
    const parts = splitByRank(packed, chosen, pairs, ranks);
    const sent = send(options, epoch, layer, routing, parts);
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

function lostCopies(
  options: RemoteExpertsOptions,
  epoch: number,
  layer: number,
  expert: number,
  rank: number,
): ShardLostError {
  const member = options.shard(rank);
  const shard = member === undefined ? `shard of rank ${rank}` : `shard ${member.address}`;
  const reason = member?.reasonAgainst(epoch) ?? "no shard has it";
  return new ShardLostError(shard, `expert ${expert} of layer ${layer}: ${reason}`);
}

/** Sends every part. */
function send(
  options: RemoteExpertsOptions,
  epoch: number,
  layer: number,
  routing: StepRouting,
  parts: readonly ShardRows[],
): Sent[] {
  const sent: Sent[] = [];
  const sendPart = (part: ShardRows): Sent => {
    const { rank } = part;
    const member = options.shard(rank);
    const stream = member?.streamOf(epoch);
    if (member === undefined || stream === undefined) throw options.unavailable();
    const span = startDispatchSpan(routing.traceContext, {
      "moe.layer": layer,
      "moe.shard.rank": rank,
      "moe.rows": part.tokens.length,
      "moe.placement.epoch": epoch,
    });
    const header = {
      epoch,
      layer,
      timeoutMs: options.dispatchTimeoutMs,
      hiddenSize: options.hiddenSize,
      topK: routing.topK,
      traceparent: span?.traceparent ?? "",
    };
    const startedAt = performance.now();
    const handle = stream.dispatch(header, part);
    const answer = observe(handle, span, (outcome, bytesIn, times) => {
      const seconds = (performance.now() - startedAt) / 1000;
      if (times !== undefined) {
        member.observe({
          bytes: handle.bytesOut + bytesIn,
          pairs: part.pairs.length,
          seconds,
          queueSeconds: times.queueUs / 1e6,
          computeSeconds: times.computeUs / 1e6,
        });
      }
      options.onDispatch?.({
        rank,
        rows: part.tokens.length,
        bytesOut: handle.bytesOut,
        bytesIn,
        seconds,
        outcome,
      });
    });
    // Handled by whoever awaits the layer; until then it may fail unseen.
    answer.catch(() => {});
    return { handle, answer };
  };
  try {
    for (const part of parts) sent.push(sendPart(part));
  } catch (error) {
    for (const { handle } of sent) handle.cancel(error);
    throw error;
  }
  return sent;
}

async function observe(
  handle: DispatchHandle,
  span: DispatchSpan | undefined,
  report: (outcome: DispatchOutcome, bytesIn: number, times?: ShardTimes) => void,
): Promise<DispatchAnswer> {
  try {
    const answer = await handle.answer;
    report("ok", answer.bytesIn, answer.times);
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
