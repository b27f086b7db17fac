/** One MoE layer while it is planned: who holds what, by index of the shard, and what each shard's rows take. */

/** What a layer's shards cost, linear in their pairs; by index of the shard [numShards]. */
export interface LayerCosts {
  /** Of a shard that holds anything: its link's round trip. */
  readonly fixed: Float64Array;
  /** Of one pair: compute, and its part of a row on the link. */
  readonly perPair: Float64Array;
  /** Of one expert that is touched. */
  readonly perExpert: Float64Array;
}

/** Copies of one layer's experts with the split of their load that makes the slowest shard fastest. */
export interface Layer {
  readonly numExperts: number;
  readonly numShards: number;
  readonly costs: LayerCosts;
  /** Pairs per step [numExperts]. */
  readonly load: Float64Array;
  /** Shards that hold each expert, in order of their adding [numExperts]. */
  readonly holders: number[][];
  /** Pairs that each of the holders takes [numExperts]. */
  readonly pairs: number[][];
  /** Of each shard [numShards]. */
  readonly seconds: Float64Array;
}

/** A layer in which nothing is held. */
export function emptyLayer(load: Float64Array, costs: LayerCosts): Layer {
  const numExperts = load.length;
  return {
    numExperts,
    numShards: costs.fixed.length,
    costs,
    load,
    holders: Array.from({ length: numExperts }, () => []),
    pairs: Array.from({ length: numExperts }, () => []),
    seconds: new Float64Array(costs.fixed.length),
  };
}

/** Gives the expert a copy that takes no pairs yet. */
export function addCopy(layer: Layer, expert: number, shard: number): void {
  layer.holders[expert].push(shard);
  layer.pairs[expert].push(0);
}

/** Shares of the copies that the pairs say, equal where the expert has none [holders]. */
export function sharesOf(layer: Layer, expert: number): number[] {
  const pairs = layer.pairs[expert];
  const total = pairs.reduce((sum, one) => sum + one, 0);
  return total > 0 ? pairs.map((one) => one / total) : pairs.map(() => 1 / pairs.length);
}

/** Expected touches of an expert that gets so many pairs per step: the chance that it gets one at all. */
export function touches(pairs: number): number {
  return -Math.expm1(-pairs);
}
