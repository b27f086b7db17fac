/** Which slots a layer has, and which it is to have; pure. */

import { NO_SLOT } from "../expert-device.ts";
import type { ExpertFormat } from "../expert-format.ts";

/** An expert of a layer in one format: what a slot is for. */
export interface SlotExpert {
  readonly expert: number;
  readonly format: ExpertFormat;
}

/** One slot of a layer on the device. */
export interface Slot {
  readonly format: ExpertFormat;
  /** Undefined where the slot is free. */
  readonly expert: number | undefined;
  /** The expert is in it. */
  readonly loaded: boolean;
}

/** A layer's slots as they are to be. */
export interface LayerChange {
  readonly slots: readonly Slot[];
  /** The present slot that each is to be made from, or NO_SLOT; undefined where the present slots serve as they are. */
  readonly from: readonly number[] | undefined;
}

/**
 * The change that gives every wanted expert a slot and leaves none free: what is there stays, a free slot of the same
 * format is taken before slots are made anew; slots that are made anew are in the order of experts.
 */
export function changeLayer(present: readonly Slot[], wanted: readonly SlotExpert[]): LayerChange {
  const missing = new Map(wanted.map((one) => [keyOf(one.expert, one.format), one]));
  const kept = present.map((slot) =>
    slot.expert !== undefined && missing.delete(keyOf(slot.expert, slot.format)) ? slot : undefined,
  );
  const slots: (Slot | undefined)[] = [...kept];
  for (const [key, { expert, format }] of missing) {
    const free = slots.findIndex(
      (slot, index) => slot === undefined && present[index].format === format,
    );
    if (free < 0) continue;
    slots[free] = { format, expert, loaded: false };
    missing.delete(key);
  }
  const taken = slots.filter((slot) => slot !== undefined);
  if (missing.size === 0 && taken.length === present.length) {
    return { slots: taken, from: undefined };
  }
  const all = [
    ...slots.flatMap((slot, index) => (slot === undefined ? [] : [{ slot, from: index }])),
    ...[...missing.values()].map(({ expert, format }) => ({
      slot: { format, expert, loaded: false },
      from: NO_SLOT,
    })),
  ].sort((a, b) => (a.slot.expert ?? 0) - (b.slot.expert ?? 0));
  return {
    slots: all.map(({ slot }) => slot),
    from: all.map(({ slot, from }) => (slot.loaded ? from : NO_SLOT)),
  };
}

/** Slot of each logical expert of a placement's layer, NO_SLOT where it is not held [numExperts]. */
export function slotsOf(
  slots: readonly Slot[],
  experts: readonly SlotExpert[],
  numExperts: number,
): Uint32Array {
  const found = new Uint32Array(numExperts).fill(NO_SLOT);
  const index = new Map(slots.map((slot, at) => [keyOf(slot.expert ?? -1, slot.format), at]));
  for (const { expert, format } of experts) {
    found[expert] = index.get(keyOf(expert, format)) ?? NO_SLOT;
  }
  return found;
}

function keyOf(expert: number, format: ExpertFormat): string {
  return `${expert} ${format}`;
}
