/** Who holds what while copies come and go, with each rank's free memory. */

import type { PlacedLayers } from "./input.ts";
import type { LayerReplicas, Replica } from "./placement.ts";

/** Limits that every stage of a move keeps. */
export interface StageLimits {
  /** Bytes that the experts of each rank may take; a rank that is absent gets no copy. */
  readonly memory: ReadonlyMap<number, number>;
  /** Device memory of one copy. */
  readonly bytes: (layer: number, expert: number) => number;
}

/** One copy of an expert. */
export interface Copy {
  readonly layer: number;
  readonly expert: number;
  readonly rank: number;
}

/** Copies that are held; they change. */
export class Holdings {
  readonly #ranks = new Map<number, Set<number>[]>();
  readonly #free: Map<number, number>;
  readonly #limits: StageLimits;
  /** Layers as toLayers answered them and nothing has changed since. */
  readonly #built = new Map<number, LayerReplicas>();

  constructor(layers: PlacedLayers, limits: StageLimits) {
    this.#limits = limits;
    this.#free = new Map(limits.memory);
    for (const [layer, replicas] of layers) {
      this.#ranks.set(
        layer,
        replicas.map((copies) => new Set(copies.map(({ rank }) => rank))),
      );
      for (const [expert, copies] of replicas.entries()) {
        for (const { rank } of copies) this.#take(rank, limits.bytes(layer, expert));
      }
    }
  }

  has({ layer, expert, rank }: Copy): boolean {
    return this.#ranks.get(layer)?.[expert]?.has(rank) === true;
  }

  /** Ranks that hold the expert. */
  ranksOf(layer: number, expert: number): ReadonlySet<number> {
    return this.#ranks.get(layer)![expert];
  }

  /** Copies in order of layer, expert and their adding. */
  *copies(): Generator<Copy> {
    for (const [layer, experts] of this.#ranks) {
      for (const [expert, ranks] of experts.entries()) {
        for (const rank of ranks) yield { layer, expert, rank };
      }
    }
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
    const experts = this.#ranks.get(copy.layer);
    if (experts === undefined) throw new RangeError(`layer ${copy.layer} is not placed`);
    experts[copy.expert].add(copy.rank);
    this.#built.delete(copy.layer);
    this.#take(copy.rank, this.#limits.bytes(copy.layer, copy.expert));
  }

  remove(copy: Copy): void {
    this.#ranks.get(copy.layer)![copy.expert].delete(copy.rank);
    this.#built.delete(copy.layer);
    this.#take(copy.rank, -this.#limits.bytes(copy.layer, copy.expert));
  }

  /** Gives up spare copies of the rank until it has so many bytes free; false, and nothing given up, where they do not do. */
  giveWay(rank: number, bytes: number): boolean {
    if (!this.#free.has(rank)) return false;
    const spare: Copy[] = [];
    let free = this.free(rank);
    for (const copy of this.copies()) {
      if (free >= bytes) break;
      if (copy.rank !== rank || this.ranksOf(copy.layer, copy.expert).size < 2) continue;
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
      [...this.#ranks].map(([layer, experts]) => {
        const built =
          this.#built.get(layer) ??
          experts.map((ranks, expert) =>
            sharedAs(
              [...ranks].sort((a, b) => a - b),
              first.get(layer)?.[expert] ?? [],
              second.get(layer)?.[expert] ?? [],
            ),
          );
        this.#built.set(layer, built);
        return [layer, built];
      }),
    );
  }

  #take(rank: number, bytes: number): void {
    const free = this.#free.get(rank);
    if (free !== undefined) this.#free.set(rank, free - bytes);
  }
}

function sharedAs(
  ranks: readonly number[],
  ...models: readonly LayerReplicas[number][]
): readonly Replica[] {
  for (const copies of models) {
    const shares = ranks.map((rank) => copies.find((copy) => copy.rank === rank)?.share ?? 0);
    const total = shares.reduce((sum, share) => sum + share, 0);
    if (total > 0) return ranks.map((rank, i) => ({ rank, share: shares[i] / total }));
  }
  return ranks.map((rank) => ({ rank, share: 1 / ranks.length }));
}
