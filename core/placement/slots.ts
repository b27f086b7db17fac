/** How much of every shard's memory each layer may use. */

/** What is shared out. */
export interface SlotsInput {
  /** Of each shard, for all layers. */
  readonly memoryBytes: readonly number[];
  /** Bytes that the layer's largest expert takes [numMoeLayers]. */
  readonly expertBytes: readonly number[];
  readonly numExperts: number;
}

/**
 * Experts of each layer that each shard has room for [numMoeLayers][numShards]. Every layer gets room in proportion
 * to its bytes; where a shard's memory is no whole number of experts per layer, layers take turns in having one more, so
 * that all layers end up with the same number over all shards, or one apart.
 */
export function slotsOfLayers({ memoryBytes, expertBytes, numExperts }: SlotsInput): number[][] {
  const left = [...memoryBytes];
  let bytesAhead = expertBytes.reduce((sum, bytes) => sum + bytes, 0);
  return expertBytes.map((bytes) => {
    // Divided as whole experts where all are alike: 26 · 8 slots are 8 per layer, not 7.999.
    const exact = left.map((free) =>
      Math.min(numExperts, free / bytes / Math.max(1, bytesAhead / bytes)),
    );
    const whole = exact.map((slots) => Math.floor(slots + 1e-9));
    const sum = exact.reduce((total, slots) => total + slots, 0);
    let more = Math.floor(sum + 1e-6) - whole.reduce((total, slots) => total + slots, 0);
    const byRemainder = [...exact.keys()].sort(
      (a, b) => exact[b] - whole[b] - (exact[a] - whole[a]) || a - b,
    );
    for (const shard of byRemainder) {
      if (more <= 0) break;
      if (whole[shard] >= numExperts || (whole[shard] + 1) * bytes > left[shard]) continue;
      whole[shard]++;
      more--;
    }
    for (const [shard, slots] of whole.entries()) left[shard] -= slots * bytes;
    bytesAhead -= bytes;
    return whole;
  });
}
