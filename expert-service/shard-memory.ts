/** What a shard takes: its experts and the buffers of a run; from the config alone. */

import { pairsAtOnce } from "../core/gpu/expert-device.ts";
import type { ExpertSizes } from "../core/expert-device.ts";

/** Bytes of the buffers that a GPU's experts work in, for `pairs` rows · topK at once. */
export function expertWorkBytes(sizes: ExpertSizes, pairs: number): number {
  return pairs * 4 * (sizes.expertIntermediateSize + sizes.hiddenSize);
}

/**
 * What experts may take of a memory limit, so that no move exceeds it: beside all of them there is room for a layer's slots
 * once more, of the largest layer, or of all that are held where that is less.
 */
export function steadyMemory(limitBytes: number, largestLayerBytes: number): number {
  return Math.max(limitBytes - largestLayerBytes, Math.floor(limitBytes / 2));
}

/** Bytes of a shard's buffers on a GPU beside its experts: rows, sums, their read-back, and what experts work in. */
export function shardBufferBytes(sizes: ExpertSizes): number {
  const pairs = pairsAtOnce(sizes);
  return pairs * (3 * 4 * sizes.hiddenSize + 8) + expertWorkBytes(sizes, pairs);
}
