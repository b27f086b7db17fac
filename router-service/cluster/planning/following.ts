/**
 * How often a token's experts of one MoE layer and of the next sit on one shard; pure. No plan is made for it: rows come
 * back to the router after every layer, for attention and the next gate, so that it saves neither a message nor a byte.
 * It says what there would be to gain if shards handed rows on.
 */

import type { LayerReplicas } from "../../../core/placement/placement.ts";
import type { PlacedLayers } from "../../../core/placement/planner.ts";
import { NO_PARTNER, type PairLists } from "../../../core/statistics/pairs.ts";

/** Parts of all pairs of a token's expert and one of its experts in the next MoE layer. */
export interface Following {
  /** Those that sit on one shard, copies by their shares. */
  readonly together: number;
  /** The same if experts of the next layer were chosen without regard to those before. */
  readonly byChance: number;
}

/**
 * Undefined where no pairs were counted.
 * @param next pairs of consecutive MoE layers; what is not in the lists counts as chosen by chance
 * @param load pairs per expert, in any unit [numMoeLayers, numExperts]
 */
export function followingOf(
  placed: PlacedLayers,
  layers: readonly number[],
  next: PairLists,
  load: Float64Array,
): Following | undefined {
  const numExperts = load.length / layers.length;
  const replicas = layers.map((layer) => placed.get(layer) ?? []);
  const parts = replicas.map((ofLayer, l) =>
    partsOf(ofLayer, load.subarray(l * numExperts, (l + 1) * numExperts)),
  );
  let all = 0;
  let together = 0;
  let byChance = 0;
  for (const [l, sum] of next.sums.entries()) {
    const chance = [...parts[l]].reduce(
      (total, [rank, part]) => total + part * (parts[l + 1].get(rank) ?? 0),
      0,
    );
    let listed = 0;
    for (let i = l * numExperts * next.topN; i < (l + 1) * numExperts * next.topN; i++) {
      if (next.partners[i] === NO_PARTNER) continue;
      const expert = Math.floor(i / next.topN) - l * numExperts;
      listed += next.counts[i];
      together += next.counts[i] * meeting(replicas[l][expert], replicas[l + 1][next.partners[i]]);
    }
    all += sum;
    together += Math.max(0, sum - listed) * chance;
    byChance += sum * chance;
  }
  return all === 0 ? undefined : { together: together / all, byChance: byChance / all };
}

/** Part of a layer's pairs that each rank computes. */
function partsOf(replicas: LayerReplicas, load: Float64Array): Map<number, number> {
  const sum = load.reduce((total, one) => total + one, 0) || 1;
  const parts = new Map<number, number>();
  for (const [expert, copies] of replicas.entries()) {
    for (const { rank, share } of copies) {
      parts.set(rank, (parts.get(rank) ?? 0) + (share * load[expert]) / sum);
    }
  }
  return parts;
}

/** How likely a pair of two experts is computed on one rank, each by its shares. */
function meeting(copies: LayerReplicas[number] = [], others: LayerReplicas[number] = []): number {
  let chance = 0;
  for (const { rank, share } of copies) {
    for (const other of others) if (other.rank === rank) chance += share * other.share;
  }
  return chance;
}
