/** From a layer's routing to one message per shard, and from partial sums back to one sum per token; pure. */

import { takeRows, type WireRows } from "../../../core/wire-rows.ts";
import { NO_EXPERT, type PackedDispatch } from "../../../core/wire.ts";
import type { Routing } from "../../engine/run-experts.ts";

/** The rows of a batch that one shard computes. */
export interface ShardRows extends PackedDispatch {
  readonly rank: number;
  /** Tokens of the batch that the rows are [numRows], ascending. */
  readonly tokens: Uint32Array;
  /** The experts of tokens that the shard computes, as indices into the routing's ids, ascending. */
  readonly pairs: Uint32Array;
}

/** Every expert of every token, as indices into the routing's ids. Throws RangeError where there is no such expert. */
export function allPairs({ ids }: Routing, numExperts: number): Uint32Array {
  const pairs = new Uint32Array(ids.length);
  for (let pair = 0; pair < ids.length; pair++) {
    if (ids[pair] >= numExperts) {
      throw new RangeError(`expert ${ids[pair]}, the layer has ${numExperts}`);
    }
    pairs[pair] = pair;
  }
  return pairs;
}

/**
 * Splits pairs by shard: each gets the rows that have one of its pairs, shards without one get nothing.
 * @param pairs indices into the routing's ids, ascending
 * @param ranks the shard of each pair [numPairs]
 * @returns ascending by rank
 */
export function splitByRank(
  rows: WireRows,
  routing: Routing,
  pairs: Uint32Array,
  ranks: Uint16Array,
): ShardRows[] {
  const counts = new Map<number, number>();
  for (let i = 0; i < ranks.length; i++) counts.set(ranks[i], (counts.get(ranks[i]) ?? 0) + 1);
  const present = [...counts.keys()].sort((a, b) => a - b);
  return present.map((rank) => {
    const own = new Uint32Array(counts.get(rank) ?? 0);
    for (let i = 0, at = 0; i < ranks.length; i++) if (ranks[i] === rank) own[at++] = pairs[i];
    return shardRows(rows, routing, rank, own);
  });
}

function shardRows(
  rows: WireRows,
  { ids, weights, topK }: Routing,
  rank: number,
  pairs: Uint32Array,
): ShardRows {
  const ofPairs = new Uint32Array(pairs.length);
  let numRows = 0;
  for (let i = 0; i < pairs.length; i++) {
    const token = Math.floor(pairs[i] / topK);
    if (numRows === 0 || ofPairs[numRows - 1] !== token) ofPairs[numRows++] = token;
  }
  const tokens = ofPairs.slice(0, numRows);
  const expertIds = new Uint16Array(numRows * topK).fill(NO_EXPERT);
  const topkWeights = new Float32Array(numRows * topK);
  for (let i = 0, row = 0; i < pairs.length; i++) {
    const pair = pairs[i];
    while (pair >= (tokens[row] + 1) * topK) row++;
    const at = row * topK + (pair - tokens[row] * topK);
    expertIds[at] = ids[pair];
    topkWeights[at] = weights[pair];
  }
  return { rank, tokens, pairs, rows: takeRows(rows, tokens), expertIds, topkWeights };
}

/** Adds partial sums into [numTokens, hiddenSize], in the order given: the same shards give the same bits. */
export function combine(
  numTokens: number,
  hiddenSize: number,
  parts: readonly { readonly tokens: Uint32Array; readonly sums: Float32Array }[],
): Float32Array {
  const [first, ...others] = parts;
  const whole = first?.tokens.length === numTokens;
  // A shard that has all rows is where the adding begins.
  if (whole && others.length === 0) return first.sums;
  const total = whole ? first.sums.slice() : new Float32Array(numTokens * hiddenSize);
  for (const { tokens, sums } of whole ? others : parts) addRows(total, tokens, sums, hiddenSize);
  return total;
}

/** By itself, for the compiler: in the loop over the parts it runs three times as long. */
function addRows(
  total: Float32Array,
  tokens: Uint32Array,
  sums: Float32Array,
  hiddenSize: number,
): void {
  for (let row = 0; row < tokens.length; row++) {
    const to = tokens[row] * hiddenSize;
    const from = row * hiddenSize;
    for (let h = 0; h < hiddenSize; h++) total[to + h] += sums[from + h];
  }
}
