/** What placements together want in device memory; pure. */

import type { SlotExpert } from "../core/residency/slots.ts";
import type { CheckedPlacement } from "./placement-check.ts";

/** Every expert that some of the placements name, by layer, each format of it once. */
export function wantedBy(
  placements: readonly CheckedPlacement[],
): ReadonlyMap<number, readonly SlotExpert[]> {
  const wanted = new Map<number, Map<string, SlotExpert>>();
  for (const { layers, formatOf } of placements) {
    for (const [layer, experts] of layers) {
      const of = wanted.get(layer) ?? new Map<string, SlotExpert>();
      wanted.set(layer, of);
      for (const expert of experts) {
        const format = formatOf(layer, expert);
        of.set(`${expert} ${format}`, { expert, format });
      }
    }
  }
  return new Map([...wanted].map(([layer, of]) => [layer, [...of.values()]]));
}
