/** What experts take on a device beside their weights; from the config alone. */

import type { ExpertSizes } from "./expert-device.ts";
import { pairsAtOnce } from "./gpu/expert-device.ts";

/** Bytes of the buffers that a GPU's experts work in, for `pairs` rows · topK at once. */
export function expertWorkBytes(sizes: ExpertSizes, pairs: number): number {
  return pairs * 4 * (sizes.expertIntermediateSize + sizes.hiddenSize);
}

/** Bytes of the buffers of a GPU's expert device: rows, sums, their read-back, and what experts work in. */
export function expertBufferBytes(sizes: ExpertSizes): number {
  const pairs = pairsAtOnce(sizes);
  return pairs * (3 * 4 * sizes.hiddenSize + 8) + expertWorkBytes(sizes, pairs);
}

/**
 * What experts may take of a memory limit, so that no move exceeds it: beside all of them there is room for a layer's slots
 * once more, of the largest layer, or of all that are held where that is less.
 */
export function steadyMemory(limitBytes: number, largestLayerBytes: number): number {
  return Math.max(limitBytes - largestLayerBytes, Math.floor(limitBytes / 2));
}

/** What experts of so many bytes need beside them, so that `steadyMemory` of both together is theirs. */
export function moveReserve(residentBytes: number, largestLayerBytes: number): number {
  return Math.min(residentBytes, largestLayerBytes);
}
