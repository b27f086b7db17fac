/** Causal attention over a paged cache in plain loops, with keys and values per head or from one latent vector. */

import type { HeadsAttention, LatentAttention } from "../model/config.ts";

/** Where attention finds what the tokens of a batch see. */
export interface PagedCache {
  /** [numSlots, kvWidth]; per slot k before v of all heads, or the latent vector before the turned key. */
  readonly values: Float32Array;
  /** Cache slot of a position of the token's sequence. */
  readonly slotOf: (token: number, position: number) => number;
}

/** Sizes of attention per head, and what a layer adds. */
export interface HeadsOptions extends Pick<
  HeadsAttention,
  "numHeads" | "numKvHeads" | "headDim" | "scale"
> {
  /** Keys that a query sees, its own position included; undefined sees all. */
  readonly window?: number;
  /** A logit per head that takes part in the softmax and has no value [numHeads]. */
  readonly sinks?: Float32Array;
}

/** Attention of each query q [numTokens, numHeads·headDim] over its sequence's keys and values: same shape. */
export function attention(
  q: Float32Array,
  positions: Uint32Array,
  cache: PagedCache,
  options: HeadsOptions,
): Float32Array {
  const { numHeads, numKvHeads, headDim, scale, window, sinks } = options;
  const out = new Float32Array(q.length);
  const kvWidth = numKvHeads * headDim;
  const { values } = cache;
  positions.forEach((position, token) => {
    const slots = visibleSlots(cache, token, position, window);
    for (let head = 0; head < numHeads; head++) {
      const query = (token * numHeads + head) * headDim;
      const kvHead = Math.floor(head / (numHeads / numKvHeads)) * headDim;
      const scores = slots.map(
        (slot) => scale * dot(q, query, values, slot * 2 * kvWidth + kvHead, headDim),
      );
      for (const [j, p] of softmax(scores, sinks?.[head]).entries()) {
        const v = (slots[j] * 2 + 1) * kvWidth + kvHead;
        for (let d = 0; d < headDim; d++) out[query + d] += p * values[v + d];
      }
    }
  });
  return out;
}

/**
 * Latent attention of each query q [numTokens, numHeads·(nopeDim + ropeDim)] over its sequence's latent vectors and
 * turned keys: [numTokens, numHeads·valueDim]. Keys and values of all heads are expanded from the latent vectors by
 * `kvUp` [numHeads·(nopeDim + valueDim), kvLoraRank], as the model is written down (arXiv 2405.04434, 2.1).
 */
export function latentAttention(
  q: Float32Array,
  positions: Uint32Array,
  cache: PagedCache,
  kvUp: Float32Array,
  sizes: Pick<
    LatentAttention,
    "numHeads" | "kvLoraRank" | "nopeDim" | "ropeDim" | "valueDim" | "scale"
  >,
): Float32Array {
  const { numHeads, kvLoraRank, nopeDim, ropeDim, valueDim, scale } = sizes;
  const { values } = cache;
  const width = kvLoraRank + ropeDim;
  const upWidth = nopeDim + valueDim;
  const out = new Float32Array(positions.length * numHeads * valueDim);
  /** Per slot, what kvUp makes of its latent vector: [numHeads, nopeDim + valueDim]. */
  const expanded = new Map<number, Float32Array>();
  const expand = (slot: number) => {
    let heads = expanded.get(slot);
    if (heads === undefined) {
      heads = new Float32Array(numHeads * upWidth);
      for (let row = 0; row < heads.length; row++) {
        heads[row] = dot(kvUp, row * kvLoraRank, values, slot * width, kvLoraRank);
      }
      expanded.set(slot, heads);
    }
    return heads;
  };
  positions.forEach((position, token) => {
    const slots = visibleSlots(cache, token, position);
    for (let head = 0; head < numHeads; head++) {
      const query = (token * numHeads + head) * (nopeDim + ropeDim);
      const to = (token * numHeads + head) * valueDim;
      const scores = slots.map((slot) => {
        const plain = dot(q, query, expand(slot), head * upWidth, nopeDim);
        const turned = dot(q, query + nopeDim, values, slot * width + kvLoraRank, ropeDim);
        return scale * (plain + turned);
      });
      for (const [j, p] of softmax(scores).entries()) {
        const v = expand(slots[j]).subarray(head * upWidth + nopeDim, (head + 1) * upWidth);
        for (let d = 0; d < valueDim; d++) out[to + d] += p * v[d];
      }
    }
  });
  return out;
}

/** Slots of the positions that a token at `position` sees, in order. */
function visibleSlots(
  { slotOf }: PagedCache,
  token: number,
  position: number,
  window = Number.POSITIVE_INFINITY,
): number[] {
  const first = Math.max(0, position - window + 1);
  return Array.from({ length: position - first + 1 }, (_, j) => slotOf(token, first + j));
}

/** Softmax of scores, beside a sink where there is one. */
function softmax(scores: readonly number[], sink = Number.NEGATIVE_INFINITY): number[] {
  const top = scores.reduce((a, b) => Math.max(a, b), sink);
  const parts = scores.map((score) => Math.exp(score - top));
  const sum = parts.reduce((a, b) => a + b, Math.exp(sink - top));
  return parts.map((part) => part / sum);
}

function dot(a: Float32Array, fromA: number, b: Float32Array, fromB: number, n: number): number {
  let sum = 0;
  for (let i = 0; i < n; i++) sum += a[fromA + i] * b[fromB + i];
  return sum;
}
