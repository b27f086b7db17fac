/** Which copy of its expert takes which token of a batch. */

import { assignPairs } from "../../../core/placement/assign-pairs.ts";
import { type CopyTable, copyTable, type SplitCosts } from "../../../core/placement/copy-table.ts";
import {
  type LayerReplicas,
  NO_RANK,
  type Placement,
  ranksOf,
} from "../../../core/placement/placement.ts";
import type { Routing } from "../../engine/run-experts.ts";
import type { Reach } from "../reach.ts";

/**
 * Chooses the shard of each pair: an expert's tokens go round its usable copies, each as often as its share says.
 * @param pairs indices into the routing's ids, ascending
 * @returns ranks [numPairs]; NO_RANK where no copy is usable
 */
export function chooseCopies(
  { ids }: Routing,
  pairs: Uint32Array,
  replicas: LayerReplicas,
  usable: (rank: number) => boolean,
): Uint16Array {
  const turns = new Map<number, Turns>();
  return Uint16Array.from(pairs, (pair) => {
    const expert = ids[pair];
    let turn = turns.get(expert);
    if (turn === undefined) {
      turn = new Turns(replicas[expert].filter(({ rank }) => usable(rank)));
      turns.set(expert, turn);
    }
    return turn.next();
  });
}

/** The copies of one expert, in turn. */
class Turns {
  readonly #copies: readonly { readonly rank: number; readonly share: number }[];
  readonly #taken: number[];

  constructor(copies: readonly { readonly rank: number; readonly share: number }[]) {
    this.#copies = copies;
    this.#taken = copies.map(() => 0);
  }

  /** The copy that is furthest behind its share after one token more. */
  next(): number {
    if (this.#copies.length <= 1) return this.#copies[0]?.rank ?? NO_RANK;
    let best = 0;
    let least = Infinity;
    for (const [index, { share }] of this.#copies.entries()) {
      const behind = (this.#taken[index] + 1) / Math.max(share, 1e-6);
      if (behind < least) [best, least] = [index, behind];
    }
    this.#taken[best]++;
    return this.#copies[best].rank;
  }
}

/** The router's own time for one more message, seconds. */
const SECONDS_PER_HOP = 3e-4;
/** What a shard counts as before anything was measured, seconds. */
const UNKNOWN_ROUND_TRIP = 1e-3;
const UNKNOWN_PER_PAIR = 1e-4;
const LEAST = 1e-9;

/** Chooses copies by what they cost now; remembers the tables of one placement. */
export class CopyChooser {
  readonly #rowBytes: number;
  readonly #byShares: boolean;
  #placement: Placement | undefined;
  #ranks: readonly number[] = [];
  #tables = new Map<number, CopyTable>();

  /** `byShares`: copies take their planned shares, whatever they cost now. */
  constructor(hiddenSize: number, byShares = false) {
    this.#byShares = byShares;
    // There in the wire's dtype and back in f32, roughly.
    this.#rowBytes = hiddenSize * 7;
  }

  /**
   * Chooses the shard of each pair among those that are trusted, so that the slowest of them is done soonest.
   * @param pairs indices into the routing's ids, ascending
   * @returns ranks [numPairs]; NO_RANK where no copy is trusted
   */
  choose(
    placement: Placement,
    layer: number,
    routing: Routing,
    pairs: Uint32Array,
    reach: (rank: number) => Reach | undefined,
  ): Uint16Array {
    const table = this.#table(placement, layer);
    const reaches = this.#ranks.map((rank) => {
      const one = reach(rank);
      return one?.trusted === true ? one : undefined;
    });
    const { ids } = routing;
    if (table.shared.length === 0) {
      const ranks = this.#ranks.map((rank, shard) => (reaches[shard] ? rank : NO_RANK));
      return onlyCopies(ids, pairs, table, ranks);
    }
    if (this.#byShares || pairs.length < ids.length || !haveCopies(ids, table, reaches)) {
      const usable = new Set(this.#ranks.filter((_, shard) => reaches[shard] !== undefined));
      const replicas = placement.layers.get(layer) ?? [];
      return chooseCopies(routing, pairs, replicas, (rank) => usable.has(rank));
    }
    const assigned = assignPairs(ids, routing.topK, table, splitCosts(reaches, this.#rowBytes));
    for (let pair = 0; pair < assigned.length; pair++) assigned[pair] = this.#ranks[assigned[pair]];
    return assigned;
  }

  /** Whether every pair's expert has several copies in the placement. */
  haveOthers(placement: Placement, layer: number, { ids }: Routing, pairs: Uint32Array): boolean {
    const { offsets, shared } = this.#table(placement, layer);
    if (shared.length === 0) return false;
    for (let i = 0; i < pairs.length; i++) {
      const expert = ids[pairs[i]];
      if (offsets[expert + 1] - offsets[expert] < 2) return false;
    }
    return true;
  }

  #table(placement: Placement, layer: number): CopyTable {
    if (placement !== this.#placement) {
      this.#placement = placement;
      this.#ranks = ranksOf(placement);
      this.#tables = new Map();
    }
    const known = this.#tables.get(layer);
    if (known !== undefined) return known;
    const made = copyTable(placement.layers.get(layer) ?? [], this.#ranks);
    this.#tables.set(layer, made);
    return made;
  }
}

/** The rank of each pair where every expert has one copy; `ranks`: by shard index. */
function onlyCopies(
  ids: Uint32Array,
  pairs: Uint32Array,
  { offsets, shards }: CopyTable,
  ranks: readonly number[],
): Uint16Array {
  const chosen = new Uint16Array(pairs.length);
  for (let i = 0; i < pairs.length; i++) chosen[i] = ranks[shards[offsets[ids[pairs[i]]]]];
  return chosen;
}

/** Whether every expert has a copy on a shard that can be asked. */
function haveCopies(
  ids: Uint32Array,
  { offsets, shards }: CopyTable,
  reaches: readonly (Reach | undefined)[],
): boolean {
  if (!reaches.includes(undefined)) return true;
  return ids.every((expert) => {
    for (let copy = offsets[expert]; copy < offsets[expert + 1]; copy++) {
      if (reaches[shards[copy]] !== undefined) return true;
    }
    return false;
  });
}

/** What rows cost at each shard, by its measured speed; a shard without one counts as the others do on average. */
function splitCosts(reaches: readonly (Reach | undefined)[], rowBytes: number): SplitCosts {
  const speeds = reaches.map((one) => one?.speed);
  const mean = (values: readonly (number | undefined)[], unknown: number) => {
    const known = values.filter((value) => value !== undefined);
    return known.length === 0
      ? unknown
      : known.reduce((sum, value) => sum + value, 0) / known.length;
  };
  const roundTrips = speeds.map((one) => one?.roundTripSeconds);
  const perPairs = speeds.map((one) => one?.secondsPerPair);
  const roundTrip = mean(roundTrips, UNKNOWN_ROUND_TRIP);
  const perPair = mean(perPairs, UNKNOWN_PER_PAIR);
  const perRow = (bytesPerSecond: number | undefined) =>
    bytesPerSecond === undefined ? 0 : rowBytes / bytesPerSecond;
  return {
    fixed: Float64Array.from(reaches, (one, shard) =>
      one === undefined ? Infinity : Math.max(LEAST, roundTrips[shard] ?? roundTrip),
    ),
    perHop: new Float64Array(reaches.length).fill(SECONDS_PER_HOP),
    perRow: Float64Array.from(speeds, (one) => perRow(one?.bytesPerSecond)),
    perPair: Float64Array.from(perPairs, (one) => Math.max(LEAST, one ?? perPair)),
    perExpert: new Float64Array(reaches.length),
  };
}
