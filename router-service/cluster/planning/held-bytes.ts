/** What placed experts take of shards' device memory; pure. */

import type { PlacedLayers } from "../../../core/placement/planner.ts";
import { expertBytes } from "../../../core/weights.ts";
import type { PlanFacts } from "./planner-input.ts";

/** Device memory of each expert, bytes. */
export type BytesOf = (layer: number, expert: number) => number;

/** Device memory of each expert of a model in these formats. */
export function bytesIn({ config, formatOf }: Pick<PlanFacts, "config" | "formatOf">): BytesOf {
  return (layer, expert) => expertBytes(config, formatOf(layer, expert));
}

/** Bytes of the copies that a rank holds. */
export function rankBytes(bytesOf: BytesOf, layers: PlacedLayers, rank: number): number {
  let bytes = 0;
  for (const [layer, replicas] of layers) {
    for (const [expert, copies] of replicas.entries()) {
      if (copies.some((copy) => copy.rank === rank)) bytes += bytesOf(layer, expert);
    }
  }
  return bytes;
}
