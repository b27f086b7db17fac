/** Which experts are in the shard's device memory: exactly those of its placement. */

import type { ExpertDevice, ExpertWeights } from "../core/expert-device.ts";
import { NO_SLOT } from "../core/expert-device.ts";
import { loadExperts } from "../core/load-experts.ts";
import { DispatchRefusedError } from "../core/wire.ts";
import type { Placement, PlacementAck } from "../proto/gen/switchyard/v1/cluster.ts";
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
  readExpert(layer: number, expertId: number): Promise<ExpertWeights>;
  /** Bytes read since the checkpoint was opened. */
  bytesRead(): number;
}

/** One layer on the device. */
interface ResidentLayer {
  /** Logical experts, ascending; the index is the slot. */
  readonly experts: readonly number[];
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
  #device: { readonly expertDevice: ExpertDevice; readonly weights: string } | undefined;
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
  async apply(placement: Placement, shared: boolean): Promise<PlacementAck> {
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
        experts.map(() => placement.weights),
      );
    }
    const loads = missing.flatMap(([layer, experts]) =>
      experts.map((expert, slot) => ({ layer, expert, slot, format: placement.weights })),
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
      this.#layers.set(layer, { experts, slots });
    }
    if (this.#target?.placement === placement) this.#serving = placement;
  }

  async #deviceFor({ weights }: CheckedPlacement): Promise<ExpertDevice> {
    if (this.#device?.weights !== weights) {
      this.#device?.expertDevice.close();
      this.#device = undefined;
      this.#layers.clear();
      this.#device = { expertDevice: await this.#options.device.create([weights]), weights };
    }
    return this.#device.expertDevice;
  }

  #freeOthers(device: ExpertDevice, placement: CheckedPlacement): void {
    for (const [layer, { experts }] of this.#layers) {
      if (sameIds(experts, placement.layers.get(layer))) continue;
      device.free(layer);
      this.#layers.delete(layer);
    }
  }
}
