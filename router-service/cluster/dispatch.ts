/** From a layer's routing to one message per shard, and from partial sums back to one sum per token; pure. */

import { takeRows, type WireRows } from "../../core/wire-rows.ts";
import { NO_EXPERT, type PackedDispatch } from "../../core/wire.ts";
import type { Routing } from "../engine/run-experts.ts";

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
  for (const id of ids) {
    if (id >= numExperts) throw new RangeError(`expert ${id}, the layer has ${numExperts}`);
  }
  return Uint32Array.from(ids, (_, pair) => pair);
}

/**
 * Splits pairs by shard: each gets the rows that have one of its pairs, shards without one get nothing.
 * @param pairs indices into the routing's ids, ascending
 * @param ranks the shard of each pair [numPairs]
 * @returns ascending by rank
 */
export function splitByRank(
  rows: WireRows,
  { ids, weights, topK }: Routing,
  pairs: Uint32Array,
  ranks: Uint16Array,
): ShardRows[] {
  const pairsOf = new Map<number, number[]>();
  for (const [index, rank] of ranks.entries()) {
    const own = pairsOf.get(rank);
    if (own === undefined) pairsOf.set(rank, [pairs[index]]);
    else own.push(pairs[index]);
  }
  const byRank = [...pairsOf].sort(([a], [b]) => a - b);
  return byRank.map(([rank, own]) => {
    const tokens: number[] = [];
    for (const pair of own) {
      const token = Math.floor(pair / topK);
      if (tokens.at(-1) !== token) tokens.push(token);
    }
    const expertIds = new Uint16Array(tokens.length * topK).fill(NO_EXPERT);
    const topkWeights = new Float32Array(tokens.length * topK);
    let row = 0;
    for (const pair of own) {
      const token = Math.floor(pair / topK);
      while (tokens[row] !== token) row++;
      const at = row * topK + (pair % topK);
      expertIds[at] = ids[pair];
      topkWeights[at] = weights[pair];
    }
    return {
      rank,
      tokens: Uint32Array.from(tokens),
      pairs: Uint32Array.from(own),
      rows: takeRows(rows, tokens),
      expertIds,
      topkWeights,
    };
  });
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
  for (const { tokens, sums } of whole ? others : parts) {
    for (let row = 0; row < tokens.length; row++) {
      const to = tokens[row] * hiddenSize;
      const from = row * hiddenSize;
      for (let h = 0; h < hiddenSize; h++) total[to + h] += sums[from + h];
    }
  }
  return total;
}
