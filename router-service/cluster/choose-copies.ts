/** Which copy of its expert takes which token of a batch; pure. */

import type { LayerReplicas } from "../../core/placement/placement.ts";
import type { Routing } from "../engine/run-experts.ts";

/** Rank of no shard: the expert has no copy that can be used. */
export const NO_RANK = 65_534;

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
