/** What a shard takes: its experts and the buffers of a run; from the config alone. */

import { pairsAtOnce } from "../core/gpu/expert-device.ts";
import type { ExpertSizes } from "../core/expert-device.ts";
import type { FormatOf } from "../core/expert-format.ts";
import { moeLayers, type ModelConfig } from "../core/model/config.ts";
import { expertBytes } from "../core/weights.ts";

/** Bytes of each expert id in all MoE layers together, [numExperts]. */
export function bytesByExpert(config: ModelConfig, formatOf: FormatOf): number[] {
  const layers = moeLayers(config);
  return Array.from({ length: config.numExperts }, (_, expert) =>
    layers.reduce((sum, layer) => sum + expertBytes(config, formatOf(layer, expert)), 0),
  );
}

/** Bytes of the buffers that a GPU's experts work in, for `pairs` rows · topK at once. */
export function expertWorkBytes(sizes: ExpertSizes, pairs: number): number {
  return pairs * 4 * (sizes.expertIntermediateSize + sizes.hiddenSize);
}

/** Bytes of a shard's buffers on a GPU beside its experts: rows, sums, their read-back, and what experts work in. */
export function shardBufferBytes(sizes: ExpertSizes): number {
  const pairs = pairsAtOnce(sizes);
  return pairs * (3 * 4 * sizes.hiddenSize + 8) + expertWorkBytes(sizes, pairs);
}
