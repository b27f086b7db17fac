/** Which experts are in the shard's device memory: exactly those of its placement. */

import type { ExpertDevice, StoredExpert } from "../core/expert-device.ts";
import { NO_SLOT } from "../core/expert-device.ts";
import type { ExpertFormat } from "../core/expert-format.ts";
import { loadExperts } from "../core/load-experts.ts";
import { DispatchRefusedError } from "../core/wire.ts";
import type { ShardPlacement, PlacementAck } from "../proto/gen/switchyard/v1/cluster.ts";
import { DispatchErrorCode } from "../proto/gen/switchyard/v1/expert.ts";
import type { ShardDevice } from "./device.ts";
import type { CheckedPlacement, ShardAbilities } from "./placement-check.ts";
import {
  checkPlacement,
  PlacementRefusedError,
  sameIds,
  samePlacement,
} from "./placement-check.ts";

/** The shard's own copy of the checkpoint. */
export interface ExpertSource {
  readExpert(layer: number, expertId: number): Promise<StoredExpert>;
  /** Bytes read since the checkpoint was opened. */
  bytesRead(): number;
}

/** One layer on the device. */
interface ResidentLayer {
  /** Logical experts, ascending; the index is the slot. */
  readonly experts: readonly number[];
  /** By slot. */
  readonly formats: readonly ExpertFormat[];
  /** Slot of each logical expert, NO_SLOT where it is not held [numExperts]. */
  readonly slots: Uint32Array;
}

/** What computes a dispatch of an epoch and layer. */
export interface HeldLayer {
  readonly device: ExpertDevice;
  /** Slot of each logical expert, NO_SLOT where it is not held [numExperts]. */
  readonly slots: Uint32Array;
}

/** What a residency needs. */
export interface ResidencyOptions extends ShardAbilities {
  readonly device: ShardDevice;
  readonly source: ExpertSource;
  /** Settles when no run is on the device. */
  readonly idle: () => Promise<void>;
  /** Called after each expert that was loaded. */
  readonly onProgress?: (loaded: number, total: number) => void;
}

/** Holds a shard's experts; starts empty. */
export class Residency {
  readonly #options: ResidencyOptions;
  readonly #layers = new Map<number, ResidentLayer>();
  #device:
    | { readonly expertDevice: ExpertDevice; readonly formats: readonly ExpertFormat[] }
    | undefined;
  /** The placement that is in force or being loaded. */
  #target: { readonly placement: CheckedPlacement; readonly done: Promise<void> } | undefined;
  /** The placement of which every expert is resident. */
  #serving: CheckedPlacement | undefined;

  constructor(options: ResidencyOptions) {
    this.#options = options;
  }

  /**
   * Loads what a placement says, frees the rest, and answers when all is resident. The same placement again is free.
   * Throws PlacementRefusedError for an epoch below the current one, and for another placement of the current epoch
   * while `shared` (other routers work by it); what goes wrong while loading leaves the shard without a placement.
   */
  async apply(placement: ShardPlacement, shared: boolean): Promise<PlacementAck> {
    const wanted = checkPlacement(placement, this.#options);
    const current = this.#target;
    if (current !== undefined && wanted.epoch < current.placement.epoch) {
      throw new PlacementRefusedError(
        `placement: epoch ${wanted.epoch}, the shard is at epoch ${current.placement.epoch}`,
      );
    }
    if (current === undefined || !samePlacement(wanted, current.placement)) {
      if (shared && wanted.epoch === current?.placement.epoch) {
        throw new PlacementRefusedError(
          `placement: epoch ${wanted.epoch} was given by another router with other experts or weights`,
        );
      }
      this.#start(wanted);
    }
    const target = this.#target;
    await target?.done;
    return {
      epoch: wanted.epoch,
      numExperts: [...this.#layers.values()].reduce((sum, { experts }) => sum + experts.length, 0),
      residentBytes: this.#device?.expertDevice.residentBytes() ?? 0,
      checkpointBytesRead: this.#options.source.bytesRead(),
    };
  }

  /** What computes a layer in an epoch. Throws DispatchRefusedError WRONG_EPOCH or EXPERT_NOT_HELD. */
  hold(epoch: number, layer: number): HeldLayer {
    if (this.#serving?.epoch !== epoch || this.#device === undefined) {
      const has = this.#serving === undefined ? "no placement" : `epoch ${this.#serving.epoch}`;
      throw new DispatchRefusedError(
        DispatchErrorCode.DISPATCH_ERROR_CODE_WRONG_EPOCH,
        `epoch ${epoch}: the shard has ${has}`,
      );
    }
    const held = this.#layers.get(layer);
    if (held === undefined) {
      throw new DispatchRefusedError(
        DispatchErrorCode.DISPATCH_ERROR_CODE_EXPERT_NOT_HELD,
        `layer ${layer}: the shard holds no expert of it in epoch ${epoch}`,
      );
    }
    return { device: this.#device.expertDevice, slots: held.slots };
  }

  close(): void {
    this.#serving = undefined;
    this.#target = undefined;
    this.#layers.clear();
    this.#device?.expertDevice.close();
    this.#device = undefined;
  }

  #start(placement: CheckedPlacement): void {
    const before = this.#target?.done;
    this.#serving = undefined;
    const done = this.#load(placement, before);
    this.#target = { placement, done };
    done.catch(() => {
      if (this.#target?.placement === placement) this.close();
    });
  }

  async #load(placement: CheckedPlacement, before: Promise<void> | undefined): Promise<void> {
    await before?.catch(() => {});
    await this.#options.idle();
    const device = await this.#deviceFor(placement);
    this.#freeOthers(device, placement);
    // All memory first: a placement that does not fit fails before a byte is read.
    const missing = [...placement.layers].filter(([layer]) => !this.#layers.has(layer));
    for (const [layer, experts] of missing) {
      device.allocate(
        layer,
        experts.map((expertId) => placement.formatOf(layer, expertId)),
      );
    }
    const loads = missing.flatMap(([layer, experts]) =>
      experts.map((expert, slot) => {
        const format = placement.formatOf(layer, expert);
        return { layer, expert, slot, format };
      }),
    );
    let loaded = 0;
    await loadExperts(loads, {
      sizes: this.#options.model,
      read: (layer, expert) => this.#options.source.readExpert(layer, expert),
      device,
      onExpert: () => this.#options.onProgress?.(++loaded, loads.length),
    });
    for (const [layer, experts] of missing) {
      const slots = new Uint32Array(this.#options.model.numExperts).fill(NO_SLOT);
      for (const [slot, expert] of experts.entries()) slots[expert] = slot;
      const formats = experts.map((expert) => placement.formatOf(layer, expert));
      this.#layers.set(layer, { experts, formats, slots });
    }
    if (this.#target?.placement === placement) this.#serving = placement;
  }

  /** The device, made again where it is not for the placement's formats: kernels are compiled for some only. */
  async #deviceFor(placement: CheckedPlacement): Promise<ExpertDevice> {
    const { formats } = placement;
    const has = this.#device?.formats;
    if (this.#device === undefined || !formats.every((format) => has?.includes(format))) {
      this.#device?.expertDevice.close();
      this.#device = undefined;
      this.#layers.clear();
      this.#device = { expertDevice: await this.#options.device.create(formats), formats };
    }
    return this.#device.expertDevice;
  }

  #freeOthers(device: ExpertDevice, placement: CheckedPlacement): void {
    for (const [layer, { experts, formats }] of this.#layers) {
      const same = (id: number, slot: number) => placement.formatOf(layer, id) === formats[slot];
      if (sameIds(experts, placement.layers.get(layer)) && experts.every(same)) continue;
      device.free(layer);
      this.#layers.delete(layer);
    }
  }
}
