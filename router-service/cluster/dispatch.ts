/** From a layer's routing to one message per shard, and from partial sums back to one sum per token; pure. */

import { takeRows, type WireRows } from "../../core/wire-rows.ts";
import { NO_EXPERT, type PackedDispatch } from "../../core/wire.ts";
import type { Routing } from "../engine/run-experts.ts";

/** The rows of a batch that one shard computes. */
export interface ShardRows extends PackedDispatch {
  /** Index of the shard, in rank order. */
  readonly shard: number;
  /** Tokens of the batch that the rows are [numRows], ascending. */
  readonly tokens: Uint32Array;
}

/** Index of the shard that holds each logical expert of a layer [numExperts]. */
export type ExpertLocations = Uint16Array;

/** Splits a batch: each shard gets the rows that have an expert there, shards without one get nothing. */
export function splitByShard(
  rows: WireRows,
  routing: Routing,
  locations: ExpertLocations,
  numShards: number,
): ShardRows[] {
  const { ids, weights, topK } = routing;
  const numTokens = ids.length / topK;
  const tokensOf: number[][] = Array.from({ length: numShards }, () => []);
  for (let token = 0; token < numTokens; token++) {
    for (let k = 0; k < topK; k++) {
      const expertId = ids[token * topK + k];
      if (expertId >= locations.length) {
        throw new RangeError(`expert ${expertId}, the layer has ${locations.length}`);
      }
      const tokens = tokensOf[locations[expertId]];
      if (tokens.at(-1) !== token) tokens.push(token);
    }
  }
  return tokensOf.flatMap((tokens, shard) => {
    if (tokens.length === 0) return [];
    const expertIds = new Uint16Array(tokens.length * topK).fill(NO_EXPERT);
    const topkWeights = new Float32Array(tokens.length * topK);
    for (const [row, token] of tokens.entries()) {
      for (let k = 0; k < topK; k++) {
        const expertId = ids[token * topK + k];
        if (locations[expertId] !== shard) continue;
        expertIds[row * topK + k] = expertId;
        topkWeights[row * topK + k] = weights[token * topK + k];
      }
    }
    return [
      {
        shard,
        tokens: Uint32Array.from(tokens),
        rows: takeRows(rows, tokens),
        expertIds,
        topkWeights,
      },
    ];
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
