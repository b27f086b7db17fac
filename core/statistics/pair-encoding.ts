/** Lists of pairs as they stand in Redis: encoding.ts says where. Pure. */

import type { RoutingShape } from "./routed-step.ts";
import { CELL_BYTES } from "./encoding.ts";
import {
  emptyLists,
  NO_PARTNER,
  PAIR_KINDS,
  TOP_PARTNERS,
  type PairKind,
  type PairLists,
} from "./pairs.ts";

const ENTRY_BYTES = 2 + CELL_BYTES;

/** Field of a layer's lists. */
export function listField(kind: PairKind, layer: number): string {
  return `${kind}:${layer}`;
}

/** Lists of one layer. */
export function encodeLists(lists: PairLists, layer: number, numExperts: number): Buffer {
  const { topN, partners, counts, sums } = lists;
  const entries = numExperts * topN;
  const bytes = Buffer.allocUnsafe(CELL_BYTES + entries * ENTRY_BYTES);
  let at = bytes.writeUIntBE(Math.round(sums[layer]), 0, CELL_BYTES);
  for (let i = layer * entries; i < (layer + 1) * entries; i++) {
    at = bytes.writeUInt16BE(partners[i], at);
    at = bytes.writeUIntBE(Math.round(counts[i]), at, CELL_BYTES);
  }
  return bytes;
}

/** Lists of a writer's hash, fields and values in turns; what has another size than the model's is left out. */
export function decodeLists(
  fields: readonly Buffer[],
  kind: PairKind,
  numLayers: number,
  { numExperts }: RoutingShape,
): PairLists {
  const lists = emptyLists(numLayers, numExperts, TOP_PARTNERS);
  const entries = numExperts * TOP_PARTNERS;
  for (let f = 0; f + 1 < fields.length; f += 2) {
    const [name, index] = String(fields[f]).split(":");
    const layer = Number(index);
    const bytes = fields[f + 1];
    if (!PAIR_KINDS.some((known) => known === name) || name !== kind || !(layer < numLayers))
      continue;
    if (bytes.length !== CELL_BYTES + entries * ENTRY_BYTES) continue;
    lists.sums[layer] = bytes.readUIntBE(0, CELL_BYTES);
    for (let i = 0, at = CELL_BYTES; i < entries; i++, at += ENTRY_BYTES) {
      const partner = bytes.readUInt16BE(at);
      lists.partners[layer * entries + i] = partner < numExperts ? partner : NO_PARTNER;
      lists.counts[layer * entries + i] = bytes.readUIntBE(at + 2, CELL_BYTES);
    }
  }
  return lists;
}
