/** The slots of an expert device and who is in them; they change between two runs only. */

import { type ExpertDevice, type NewSlots, NO_SLOT } from "../expert-device.ts";
import type { ExpertFormat, FormatOf, PackedExpert } from "../expert-format.ts";
import { changeLayer, type LayerChange, type Slot, type SlotExpert, slotsOf } from "./slots.ts";

/** Bytes of a layer's memory that are made ready between two runs. */
const PART_BYTES = 2 ** 23;

/** The experts of an epoch. */
export interface PlacedExperts {
  /** Layer → its logical experts, ascending. */
  readonly layers: ReadonlyMap<number, readonly number[]>;
  readonly formatOf: FormatOf;
}

/** What slots need. */
export interface DeviceSlotsOptions {
  readonly device: ExpertDevice;
  readonly numExperts: number;
  /** Does something while no run is on the device. */
  readonly between: <T>(task: () => T) => Promise<T>;
  /** Whether runs are served meanwhile; absent: changes need not give way to any. */
  readonly gentle?: () => boolean;
  /** Keeps an expert that leaves the device; absent: none is kept. */
  readonly keep?: (layer: number, expert: number, packed: PackedExpert) => void;
}

/** An expert without its weights, and its slot. */
export interface EmptySlot extends SlotExpert {
  readonly layer: number;
  readonly slot: number;
}

/** A device and what is in its slots. */
export class DeviceSlots {
  readonly device: ExpertDevice;
  readonly #options: DeviceSlotsOptions;
  readonly #layers = new Map<number, readonly Slot[]>();
  /** Slots of a placement's layer, found once: they hold until the layer's slots change. */
  #found = new WeakMap<PlacedExperts, Map<number, Uint32Array>>();

  constructor(options: DeviceSlotsOptions) {
    this.#options = options;
    this.device = options.device;
  }

  /** Slot of each logical expert of a placement's layer [numExperts]; undefined where it has none of the layer. */
  find(placement: PlacedExperts, layer: number): Uint32Array | undefined {
    const experts = placement.layers.get(layer);
    if (experts === undefined || experts.length === 0) return undefined;
    const known = this.#found.get(placement) ?? new Map<number, Uint32Array>();
    this.#found.set(placement, known);
    let slots = known.get(layer);
    if (slots === undefined) {
      const wanted = experts.map((expert) => ({
        expert,
        format: placement.formatOf(layer, expert),
      }));
      slots = slotsOf(this.#layers.get(layer) ?? [], wanted, this.#options.numExperts);
      known.set(layer, slots);
    }
    return slots;
  }

  /** The slot that an expert is loaded in; NO_SLOT where there is none. */
  indexOf(layer: number, expert: number, format: ExpertFormat): number {
    const slots = this.#layers.get(layer) ?? [];
    const index = slots.findIndex(
      (slot) => slot.expert === expert && slot.format === format && slot.loaded,
    );
    return index < 0 ? NO_SLOT : index;
  }

  /** Experts in their slots, over all layers. */
  numLoaded(): number {
    let loaded = 0;
    for (const slots of this.#layers.values()) {
      loaded += slots.filter((slot) => slot.loaded).length;
    }
    return loaded;
  }

  /** Slots that wait for their experts. */
  empty(): EmptySlot[] {
    return [...this.#layers].flatMap(([layer, slots]) =>
      slots.flatMap(({ format, expert, loaded }, slot) =>
        expert === undefined || loaded ? [] : [{ layer, slot, expert, format }],
      ),
    );
  }

  /** An expert is in its slot. */
  filled({ layer, slot }: EmptySlot): void {
    const slots = this.#layers.get(layer) ?? [];
    this.#layers.set(layer, slots.with(slot, { ...slots[slot], loaded: true }));
  }

  /**
   * Gives every wanted expert a slot and frees all others, layers that shrink first; what is loaded stays loaded.
   * Rejects with the signal's reason between two layers or slices of one, and as `ExpertDevice.rearrange`.
   */
  async arrange(
    wanted: ReadonlyMap<number, readonly SlotExpert[]>,
    signal?: AbortSignal,
  ): Promise<void> {
    const layers = new Set([...this.#layers.keys(), ...wanted.keys()]);
    const changes = [...layers].map((layer) => {
      const present = this.#layers.get(layer) ?? [];
      const change = changeLayer(present, wanted.get(layer) ?? []);
      return { layer, present, change };
    });
    changes.sort((a, b) => growthOf(a) - growthOf(b));
    for (const { layer, present, change } of changes) {
      signal?.throwIfAborted();
      await this.#keepLeaving(layer, present, change.slots);
      await this.#change(layer, change, signal);
    }
  }

  async #change(
    layer: number,
    { slots, from }: LayerChange,
    signal: AbortSignal | undefined,
  ): Promise<void> {
    const { between } = this.#options;
    if (slots.length === 0) {
      await between(() => {
        this.device.free(layer);
        this.#layers.delete(layer);
        this.#found = new WeakMap();
      });
    } else if (from === undefined) {
      if (slots.every((slot, index) => slot === this.#layers.get(layer)?.[index])) return;
      await between(() => this.#set(layer, slots));
    } else {
      const made = await this.device.rearrange(
        layer,
        slots.map(({ format }) => format),
        from,
      );
      try {
        await this.#prepare(made, signal);
      } catch (error) {
        made.discard();
        throw error;
      }
      await between(() => {
        try {
          made.commit();
        } catch (error) {
          made.discard();
          throw error;
        }
        this.#set(layer, slots);
      });
    }
  }

  /** Does the long part of a change in slices, of which a run waits for one at most. */
  async #prepare(made: NewSlots, signal: AbortSignal | undefined): Promise<void> {
    const { between, gentle = () => false } = this.#options;
    const parts = made.prepareParts(PART_BYTES);
    for (;;) {
      if (!gentle()) return;
      const { done } = await between(() => parts.next());
      if (done === true) return;
      await this.device.settled();
      signal?.throwIfAborted();
    }
  }

  /** Hands on what leaves its slot. */
  async #keepLeaving(
    layer: number,
    present: readonly Slot[],
    future: readonly Slot[],
  ): Promise<void> {
    const { keep } = this.#options;
    if (keep === undefined) return;
    for (const [index, slot] of present.entries()) {
      if (!slot.loaded || slot.expert === undefined || future.includes(slot)) continue;
      keep(layer, slot.expert, await this.device.read(layer, index));
    }
  }

  #set(layer: number, slots: readonly Slot[]): void {
    this.#layers.set(layer, slots);
    this.#found = new WeakMap();
  }
}

function growthOf(change: { readonly present: readonly Slot[]; readonly change: LayerChange }) {
  return change.change.slots.length - change.present.length;
}
