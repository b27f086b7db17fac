/**
 * One MoE layer while it is planned: who holds what, by index of the shard, and what each shard's rows take. It is
 * judged by several loads at once: the forecast, and single steps such as they may come.
 */

import type { JudgedLoads } from "./expected-loads.ts";

/** What a layer's shards cost, linear in their pairs; by index of the shard [numShards]. */
export interface LayerCosts {
  /** Of a shard that holds anything: its link's round trip. */
  readonly fixed: Float64Array;
  /** Of one pair: compute, and its part of a row on the link. */
  readonly perPair: Float64Array;
  /** Of one expert that is touched. */
  readonly perExpert: Float64Array;
  /** Of the router: its own time for a message to a shard that gets any pair. */
  readonly perHop: Float64Array;
  /** Of the router: its own time for a pair's part of a row to the shard. */
  readonly perPairSent: Float64Array;
}

/** Which experts of a layer go together, and what a row is worth. */
export interface Togetherness {
  /** Tokens of a step that choose both, beyond chance [numExperts, numExperts]. */
  readonly tokens: Float64Array;
  /** Experts that go together with each, those most first [numExperts]. */
  readonly partners: readonly (readonly number[])[];
  /** Seconds that one row less to each shard saves [numShards]. */
  readonly perRow: Float64Array;
}

/** Who holds what of a layer, by index of the shard. */
export interface LayerCopies {
  /** Shards that hold each expert [numExperts]. */
  readonly holders: number[][];
  /** Experts that each shard holds [numShards]. */
  readonly held: number[][];
  /** Experts with several copies. */
  readonly shared: number[];
}

/** Copies of one layer's experts, and for each load the split that makes the slowest shard fastest. */
export interface Layer extends LayerCopies {
  readonly numExperts: number;
  readonly numShards: number;
  readonly costs: LayerCosts;
  /** Pairs per step, the forecast first [numLoads][numExperts]. */
  readonly loads: readonly Float64Array[];
  /** What touching each takes, as a multiple of perExpert; undefined: 1 [numExperts]. */
  readonly reads: Float64Array | undefined;
  /** What the slowest shard under each load counts; the sum is 1 [numLoads]. */
  readonly weights: readonly number[];
  /** Copies that one expert can have. */
  readonly maxCopies: number;
  /** Pairs that each holder of a shared expert takes, in the order of holders [numLoads][numExperts · maxCopies]. */
  readonly pairs: readonly Float64Array[];
  /** Of each shard [numLoads][numShards]. */
  readonly seconds: readonly Float64Array[];
  /** Which experts go together; undefined where that makes no difference. */
  readonly together: Togetherness | undefined;
  /** Tokens whose experts meet on each shard, as last counted; NaN where that has changed [numShards]. */
  readonly met: Float64Array;
}

/** Copies of one expert at most, unless more are given: hot ones have no use for more, and arrays stay small. */
const MAX_COPIES = 64;

/** What a layer may begin with. */
export interface LayerStart {
  /** Copies that it holds; they change with it. Absent: none. */
  readonly copies?: LayerCopies | undefined;
  /** Memory of another layer, which is of no use any more; it is taken where it is as large. */
  readonly pairs?: Layer["pairs"] | undefined;
}

/** Copies with the shards that hold each expert, whose lists are not copied. */
export function copiesOf(holders: number[][], numShards: number): LayerCopies {
  const held: number[][] = Array.from({ length: numShards }, () => []);
  const shared: number[] = [];
  for (let expert = 0; expert < holders.length; expert++) {
    const ofExpert = holders[expert];
    for (let i = 0; i < ofExpert.length; i++) held[ofExpert[i]].push(expert);
    if (ofExpert.length > 1) shared.push(expert);
  }
  return { holders, held, shared };
}

/** A layer with copies as given, each of an expert's taking as much as the others. */
export function layerWith(
  { loads, weights }: JudgedLoads,
  { costs, together, reads }: Pick<Layer, "costs" | "together" | "reads">,
  { copies, pairs }: LayerStart,
): Layer {
  const numExperts = loads[0].length;
  const numShards = costs.fixed.length;
  const { holders, held, shared } =
    copies ??
    copiesOf(
      Array.from({ length: numExperts }, () => []),
      numShards,
    );
  let most = MAX_COPIES;
  for (const expert of shared) most = Math.max(most, holders[expert].length);
  const maxCopies = Math.min(numShards, most);
  const numPairs = numExperts * maxCopies;
  const layer: Layer = {
    numExperts,
    numShards,
    costs,
    loads,
    reads,
    weights,
    holders,
    held,
    shared,
    maxCopies,
    // What copies take is written as they come.
    pairs: pairs?.[0].length === numPairs ? pairs : arrays(loads.length, numPairs),
    seconds: arrays(loads.length, numShards),
    together,
    met: new Float64Array(numShards).fill(Number.NaN),
  };
  if (copies !== undefined) shareEvenly(layer);
  return layer;
}

/** Arrays of zeros, in one piece of memory [count][length]. */
function arrays(count: number, length: number): Float64Array[] {
  const all = new Float64Array(count * length);
  return Array.from({ length: count }, (_, i) => all.subarray(i * length, (i + 1) * length));
}

/** What is known of the meetings on the expert's shards is true no more. */
export function forgetMeetings({ met, holders }: Layer, expert: number): void {
  for (const shard of holders[expert]) met[shard] = Number.NaN;
}

/** Expected touches of an expert that gets so many pairs per step: the chance that it gets one at all. */
export function touches(pairs: number): number {
  return pairs > 40 ? 1 : -Math.expm1(-pairs);
}

/** True where the shard holds the expert. */
export function holds({ holders }: Layer, expert: number, shard: number): boolean {
  return holders[expert].includes(shard);
}

/** Shares the loads out over copies that take nothing yet, each of an expert's as much as the others. */
function shareEvenly(layer: Layer): void {
  const { holders, held, maxCopies, costs, reads } = layer;
  const { fixed, perPair, perExpert } = costs;
  for (let l = 0; l < layer.loads.length; l++) {
    const load = layer.loads[l];
    const pairs = layer.pairs[l];
    const seconds = layer.seconds[l];
    for (let shard = 0; shard < held.length; shard++) {
      if (held[shard].length > 0) seconds[shard] = fixed[shard];
    }
    for (let expert = 0; expert < holders.length; expert++) {
      const ofExpert = holders[expert];
      const each = load[expert] / ofExpert.length;
      const touched = touches(each) * (reads === undefined ? 1 : reads[expert]);
      for (let i = 0; i < ofExpert.length; i++) {
        const shard = ofExpert[i];
        pairs[expert * maxCopies + i] = each;
        seconds[shard] += perPair[shard] * each + perExpert[shard] * touched;
      }
    }
  }
}

/** Gives the expert one more copy, which takes no pairs yet unless it is the first. */
export function addCopy(layer: Layer, expert: number, shard: number): void {
  const { holders, held, shared, pairs, maxCopies, loads, seconds, costs } = layer;
  const ofExpert = holders[expert];
  addTouches(layer, expert, -1);
  if (held[shard].length === 0) addToAll(seconds, shard, costs.fixed[shard]);
  ofExpert.push(shard);
  held[shard].push(expert);
  forgetMeetings(layer, expert);
  addTouches(layer, expert, 1);
  const from = expert * maxCopies;
  for (let l = 0; l < loads.length; l++) {
    pairs[l][from + ofExpert.length - 1] = 0;
    if (ofExpert.length > 1) continue;
    pairs[l][from] = loads[l][expert];
    seconds[l][shard] += costs.perPair[shard] * loads[l][expert];
  }
  if (ofExpert.length === 2) shared.push(expert);
}

/** Takes a copy from the expert; its pairs go to the first of the others. */
export function removeCopy(layer: Layer, expert: number, shard: number): void {
  const { holders, held, shared, pairs, maxCopies, loads, seconds, costs } = layer;
  const ofExpert = holders[expert];
  const at = ofExpert.indexOf(shard);
  const others = ofExpert.length - 1;
  addTouches(layer, expert, -1);
  forgetMeetings(layer, expert);
  ofExpert[at] = ofExpert[others];
  ofExpert.pop();
  swapOut(held[shard], expert);
  addTouches(layer, expert, 1);
  const from = expert * maxCopies;
  for (let l = 0; l < loads.length; l++) {
    const taken = pairs[l][from + at];
    pairs[l][from + at] = pairs[l][from + others];
    seconds[l][shard] -= costs.perPair[shard] * taken;
    // Nothing is left there, not even what rounding left.
    if (held[shard].length === 0) seconds[l][shard] = 0;
    if (others === 0) continue;
    pairs[l][from] += taken;
    seconds[l][ofExpert[0]] += costs.perPair[ofExpert[0]] * taken;
  }
  if (others === 1) swapOut(shared, expert);
}

/** Adds or takes away what touching the expert costs its holders; each of n copies is taken to get an n-th of the load. */
function addTouches(layer: Layer, expert: number, sign: number): void {
  const { holders, loads, seconds, costs, reads } = layer;
  const ofExpert = holders[expert];
  for (let l = 0; l < loads.length; l++) {
    const touched = sign * touches(loads[l][expert] / ofExpert.length) * (reads?.[expert] ?? 1);
    for (let i = 0; i < ofExpert.length; i++) {
      seconds[l][ofExpert[i]] += costs.perExpert[ofExpert[i]] * touched;
    }
  }
}

function addToAll(seconds: readonly Float64Array[], shard: number, more: number): void {
  for (const ofLoad of seconds) ofLoad[shard] += more;
}

function swapOut(list: number[], value: number): void {
  const last = list.pop()!;
  if (last !== value) list[list.indexOf(value)] = last;
}

/** Shares of the copies under the forecast, in the order of holders; equal where the expert has no load. */
export function sharesOf({ holders, loads, pairs, maxCopies }: Layer, expert: number): number[] {
  const { length } = holders[expert];
  if (length === 1) return [1];
  const mine = [...pairs[0].subarray(expert * maxCopies, expert * maxCopies + length)];
  const total = mine.reduce((sum, one) => sum + one, 0);
  return loads[0][expert] > 0 && total > 0
    ? mine.map((one) => one / total)
    : mine.map(() => 1 / length);
}
