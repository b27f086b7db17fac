/** Copies that stand by: experts with fewer copies than are asked for get more, where there is memory to spare. */

import { Holdings, type StageLimits } from "./holdings.ts";
import type { PlacedLayers } from "./input.ts";

/**
 * The placement with at least `minCopies` copies of each expert, as far as the ranks' free memory goes: first every
 * expert's second copy, then its third, and so on, each on a rank that held it in `before`, else on the emptiest. They
 * take no share: whoever splits rows may use them, and the loss of another copy leaves them as the expert's home.
 */
export function withMinCopies(
  placed: PlacedLayers,
  minCopies: number,
  limits: StageLimits,
  before: PlacedLayers = new Map(),
): PlacedLayers {
  if (minCopies < 2) return placed;
  const held = new Holdings(placed, limits);
  const added = new Set<string>();
  for (let copies = 2; copies <= minCopies; copies++) {
    for (const [layer, replicas] of placed) {
      for (const expert of replicas.keys()) {
        if (held.ranksOf(layer, expert).size >= copies) continue;
        const rank = standbyRank(held, layer, expert, before);
        if (rank === undefined) continue;
        held.add({ layer, expert, rank });
        added.add(`${layer} ${expert}`);
      }
    }
  }
  if (added.size === 0) return placed;
  return new Map(
    [...placed].map(([layer, replicas]) => [
      layer,
      replicas.map((copies, expert) => {
        if (!added.has(`${layer} ${expert}`)) return copies;
        const shares = new Map(copies.map(({ rank, share }) => [rank, share]));
        const ranks = [...held.ranksOf(layer, expert)].sort((a, b) => a - b);
        return ranks.map((rank) => ({ rank, share: shares.get(rank) ?? 0 }));
      }),
    ]),
  );
}

function standbyRank(
  held: Holdings,
  layer: number,
  expert: number,
  before: PlacedLayers,
): number | undefined {
  const open = [...held.ranks()].filter(
    (rank) => !held.has({ layer, expert, rank }) && held.fits({ layer, expert, rank }),
  );
  const had = before.get(layer)?.[expert]?.find(({ rank }) => open.includes(rank));
  if (had !== undefined) return had.rank;
  return open.sort((a, b) => held.free(b) - held.free(a) || a - b)[0];
}
