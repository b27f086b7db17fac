/** Two micro-batches of one step: where a batch is cut, how its results come together again, and when that pays. Pure. */

import type { SampleLogits, StepBatch, StepResult } from "./model-runner.ts";
import type { Routing } from "./run-experts.ts";

/** --micro-batches: how many of a step take turns while experts are remote; auto: what the last steps were faster with. */
export type MicroBatchSetting = "auto" | "1" | "2";

/** A batch in two. */
export interface SplitBatch {
  readonly halves: readonly [StepBatch, StepBatch];
  /** A sequence has tokens in both halves: the second half's attention reads what the first half's layer wrote. */
  readonly straddles: boolean;
}

/**
 * Cuts a batch in the middle of its tokens, or between two sequences where a cut is within a quarter of that.
 * Throws RangeError where it has fewer than two tokens.
 */
export function splitBatch(batch: StepBatch): SplitBatch {
  const { sequenceRows } = batch;
  const numTokens = sequenceRows.length;
  if (numTokens < 2) throw new RangeError(`a batch of ${numTokens} tokens can not be cut in two`);
  const at = cutOf(sequenceRows);
  return {
    halves: [partOf(batch, 0, at), partOf(batch, at, numTokens)],
    straddles: sequenceRows[at - 1] === sequenceRows[at],
  };
}

/** First token of the second half. */
function cutOf(sequenceRows: Uint32Array): number {
  const middle = Math.ceil(sequenceRows.length / 2);
  const reach = Math.floor(sequenceRows.length / 8);
  for (let away = 0; away <= reach; away++) {
    for (const at of [middle - away, middle + away]) {
      if (sequenceRows[at - 1] !== sequenceRows[at]) return at;
    }
  }
  return middle;
}

function partOf(batch: StepBatch, from: number, to: number): StepBatch {
  const firstRow = batch.sequenceRows[from];
  return {
    tokenIds: batch.tokenIds.subarray(from, to),
    follows: batch.follows,
    positions: batch.positions.subarray(from, to),
    sequenceRows: batch.sequenceRows.subarray(from, to).map((row) => row - firstRow),
    blockTables: batch.blockTables.slice(firstRow, batch.sequenceRows[to - 1] + 1),
    samples: batch.samples
      .filter(({ token }) => token >= from && token < to)
      .map((sample) => Object.assign({}, sample, { token: sample.token - from })),
  };
}

/** The results of both halves as those of the whole batch. */
export function mergeResults([first, second]: readonly [StepResult, StepResult]): StepResult {
  const samples: SampleLogits[] = [...first.samples, ...second.samples];
  const routing = new Map<number, Routing>();
  for (const [layer, { ids, weights, topK }] of first.routing) {
    const other = second.routing.get(layer);
    if (other === undefined) throw new Error(`layer ${layer}: only one half has routing`);
    routing.set(layer, {
      ids: concat(new Uint32Array(ids.length + other.ids.length), ids, other.ids),
      weights: concat(new Float32Array(ids.length + other.ids.length), weights, other.weights),
      topK,
    });
  }
  return { samples, routing };
}

function concat<T extends Uint32Array | Float32Array>(out: T, first: T, second: T): T {
  out.set(first);
  out.set(second, first.length);
  return out;
}
