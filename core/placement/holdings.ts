/** Who holds what while copies come and go, with each rank's free memory. */

import type { PlacedLayers } from "./input.ts";
import type { LayerReplicas, Replica } from "./placement.ts";

/** Limits that every stage of a move keeps. */
export interface StageLimits {
  /** Bytes that the experts of each rank may take; a rank that is absent gets no copy. */
  readonly memory: ReadonlyMap<number, number>;
  /** Device memory of one copy. */
  readonly bytes: (layer: number, expert: number) => number;
  /** Bytes of copies that may give way and be loaded again later, beside those that an expert needs; absent: any. */
  readonly reloadBytes?: number;
  /** Copies of an expert that has and is to have so many which do not give way for good; absent: 1. */
  readonly minCopies?: number;
}

/** One copy of an expert. */
export interface Copy {
  readonly layer: number;
  readonly expert: number;
  readonly rank: number;
}

/** Copies that are held; they change. */
export class Holdings {
  readonly #layers: PlacedLayers;
  /** Ranks of each expert that was looked at; of the others they are as at first. */
  readonly #ranks = new Map<number, (Set<number> | undefined)[]>();
  readonly #free: Map<number, number>;
  readonly #limits: StageLimits;
  /** Layers as toLayers last answered them. */
  readonly #built = new Map<number, LayerReplicas>();
  /** Experts that have changed since then, by layer. */
  readonly #changed = new Map<number, Set<number>>();

  constructor(layers: PlacedLayers, limits: StageLimits) {
    this.#layers = layers;
    this.#limits = limits;
    this.#free = new Map(limits.memory);
    for (const [layer, replicas] of layers) {
      this.#ranks.set(layer, Array.from({ length: replicas.length }));
      for (let expert = 0; expert < replicas.length; expert++) {
        const bytes = limits.bytes(layer, expert);
        for (const { rank } of replicas[expert]) this.#take(rank, bytes);
      }
    }
  }

  has({ layer, expert, rank }: Copy): boolean {
    const ranks = this.#ranks.get(layer)?.[expert];
    if (ranks !== undefined) return ranks.has(rank);
    return this.#layers.get(layer)?.[expert]?.some((copy) => copy.rank === rank) === true;
  }

  /** Ranks that hold the expert. */
  ranksOf(layer: number, expert: number): ReadonlySet<number> {
    return this.#setOf(layer, expert);
  }

  /** Copies in order of layer, expert and their adding. */
  *copies(): Generator<Copy> {
    for (const [layer, experts] of this.#ranks) {
      const replicas = this.#layers.get(layer)!;
      for (let expert = 0; expert < experts.length; expert++) {
        const ranks = experts[expert];
        if (ranks !== undefined) {
          for (const rank of ranks) yield { layer, expert, rank };
        } else for (const { rank } of replicas[expert]) yield { layer, expert, rank };
      }
    }
  }

  /** Copies of the expert. */
  numCopies(layer: number, expert: number): number {
    return this.#ranks.get(layer)?.[expert]?.size ?? this.#layers.get(layer)![expert].length;
  }

  /** Ranks that may get copies. */
  ranks(): Iterable<number> {
    return this.#free.keys();
  }

  /** True where the rank has the memory for one more. */
  fits({ layer, expert, rank }: Copy): boolean {
    return (this.#free.get(rank) ?? -1) >= this.#limits.bytes(layer, expert);
  }

  /** Bytes that are free, negative where the rank holds more than it may. */
  free(rank: number): number {
    return this.#free.get(rank) ?? 0;
  }

  add(copy: Copy): void {
    if (!this.#ranks.has(copy.layer)) throw new RangeError(`layer ${copy.layer} is not placed`);
    this.#setOf(copy.layer, copy.expert).add(copy.rank);
    this.#change(copy);
    this.#take(copy.rank, this.#limits.bytes(copy.layer, copy.expert));
  }

  remove(copy: Copy): void {
    this.#setOf(copy.layer, copy.expert).delete(copy.rank);
    this.#change(copy);
    this.#take(copy.rank, -this.#limits.bytes(copy.layer, copy.expert));
  }

  /**
   * Gives up copies of the rank, of those in `mayGo` that are still held and not the last, until it has so many bytes free;
   * false, and nothing given up, where they do not do.
   */
  giveWay(rank: number, bytes: number, mayGo: readonly Copy[]): boolean {
    if (!this.#free.has(rank)) return false;
    const spare: Copy[] = [];
    let free = this.free(rank);
    for (const copy of mayGo) {
      if (free >= bytes) break;
      if (copy.rank !== rank || !this.has(copy)) continue;
      if (this.numCopies(copy.layer, copy.expert) < 2) continue;
      spare.push(copy);
      free += this.#limits.bytes(copy.layer, copy.expert);
    }
    if (free < bytes) return false;
    for (const copy of spare) this.remove(copy);
    return true;
  }

  /**
   * As a placement: copies share as in `first`, where none of them is there as in `second`, else evenly. A layer that did
   * not change since the last time is the same object.
   */
  toLayers(first: PlacedLayers, second: PlacedLayers): PlacedLayers {
    return new Map(
      [...this.#layers.keys()].map((layer) => [
        layer,
        this.#build(layer, first.get(layer) ?? [], second.get(layer) ?? []),
      ]),
    );
  }

  #build(layer: number, first: LayerReplicas, second: LayerReplicas): LayerReplicas {
    const before = this.#built.get(layer);
    const changed = this.#changed.get(layer);
    if (before !== undefined && changed === undefined) return before;
    const replicas = (before ?? this.#layers.get(layer)!).slice();
    const held = this.#ranks.get(layer)!;
    for (const expert of before === undefined ? replicas.keys() : changed!) {
      const ranks = held[expert] ?? ranksOf(replicas[expert]);
      if (ranks === undefined) continue;
      replicas[expert] = sharedAs(
        [...ranks].sort((a, b) => a - b),
        first[expert] ?? [],
        second[expert] ?? [],
      );
    }
    this.#built.set(layer, replicas);
    this.#changed.delete(layer);
    return replicas;
  }

  #setOf(layer: number, expert: number): Set<number> {
    const experts = this.#ranks.get(layer)!;
    return (experts[expert] ??= new Set(this.#layers.get(layer)![expert].map(({ rank }) => rank)));
  }

  #change({ layer, expert }: Copy): void {
    const changed = this.#changed.get(layer);
    if (changed === undefined) this.#changed.set(layer, new Set([expert]));
    else changed.add(expert);
  }

  #take(rank: number, bytes: number): void {
    const free = this.#free.get(rank);
    if (free !== undefined) this.#free.set(rank, free - bytes);
  }
}

/** Ranks of copies that may share otherwise; undefined where it is one, with all. */
function ranksOf(copies: readonly Replica[]): readonly number[] | undefined {
  if (copies.length === 1 && copies[0].share === 1) return undefined;
  return copies.map(({ rank }) => rank);
}

function sharedAs(
  ranks: readonly number[],
  ...models: readonly LayerReplicas[number][]
): readonly Replica[] {
  if (ranks.length === 1) return [{ rank: ranks[0], share: 1 }];
  for (const copies of models) {
    const shares = ranks.map((rank) => copies.find((copy) => copy.rank === rank)?.share ?? 0);
    const total = shares.reduce((sum, share) => sum + share, 0);
    if (total > 0) return ranks.map((rank, i) => ({ rank, share: shares[i] / total }));
  }
  return ranks.map((rank) => ({ rank, share: 1 / ranks.length }));
}
