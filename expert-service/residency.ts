/** Which experts are in the shard's device memory: exactly those that the placements of its live epochs name together. */

import type { ExpertDevice } from "../core/expert-device.ts";
import { NO_SLOT, OutOfDeviceMemoryError } from "../core/expert-device.ts";
import type { ExpertFormat, PackedExpert } from "../core/expert-format.ts";
import type { Logger } from "../core/platform/log.ts";
import { DispatchRefusedError } from "../core/wire.ts";
import { expertBytes } from "../core/weights.ts";
import type { ShardPlacement, PlacementAck } from "../proto/gen/switchyard/v1/cluster.ts";
import { DispatchErrorCode } from "../proto/gen/switchyard/v1/expert.ts";
import { DeviceSlots } from "../core/residency/device-slots.ts";
import type { ShardDevice } from "./device.ts";
import type { LoadPlacement } from "./loader.ts";
import {
  checkPlacement,
  type CheckedPlacement,
  PlacementRefusedError,
  PlacementSupersededError,
  samePlacement,
  type ShardAbilities,
} from "./placement-check.ts";
import { EpochsInUse } from "./router-epochs.ts";
import { TidyTrouble } from "./tidy-trouble.ts";
import { wantedBy } from "./wanted-experts.ts";

/** What computes a dispatch of an epoch and layer. */
export interface HeldLayer {
  readonly device: ExpertDevice;
  /** Slot of each logical expert, NO_SLOT where it is not held [numExperts]. */
  readonly slots: Uint32Array;
}

/** What a residency needs. */
export interface ResidencyOptions extends ShardAbilities {
  readonly device: ShardDevice;
  /** Loads experts into their slots. */
  readonly load: LoadPlacement;
  /** Bytes read from the checkpoint since it was opened. */
  readonly bytesRead: () => number;
  /** The formats in which a cluster keeps experts, where this is the one of those that say nothing of their own. */
  readonly formatsBeside: (common: ExpertFormat) => readonly ExpertFormat[];
  /** Does something while no run is on the device. */
  readonly between: <T>(task: () => T) => Promise<T>;
  /** Keeps an expert that leaves the device; absent: none is kept. */
  readonly keep?: (layer: number, expert: number, packed: PackedExpert) => void;
  /** A device without slots that is there already. */
  readonly made?: { readonly device: ExpertDevice; readonly formats: readonly ExpertFormat[] };
  /** What the shard holds has changed. */
  readonly onChange?: () => void;
  /** Pause before slots that could not be freed are tried again, milliseconds; absent: as `TidyTrouble`. */
  readonly tidyPauseMs?: number;
  readonly logger: Pick<Logger, "error">;
}

/** A placement that is being loaded, or waits to be. */
interface Target {
  readonly placement: CheckedPlacement;
  readonly done: PromiseWithResolvers<void>;
  readonly stop: AbortController;
}

/** Holds a shard's experts; starts empty. */
export class Residency {
  readonly #options: ResidencyOptions;
  readonly #uses = new EpochsInUse();
  readonly #live = new Map<number, CheckedPlacement>();
  #targets: Target[] = [];
  #slots: DeviceSlots | undefined;
  /** The formats that the device was made for. */
  #formats: readonly ExpertFormat[] = [];
  #work: Promise<void> | undefined;
  #untidy = false;
  readonly #trouble: TidyTrouble;
  /** Whether anything is served meanwhile. */
  readonly #gentle = () => this.#live.size > 0;
  #closed = false;

  constructor(options: ResidencyOptions) {
    this.#options = options;
    const { tidyPauseMs: pauseMs, logger } = options;
    this.#trouble = new TidyTrouble({ tryAgain: () => this.#tidySoon(true), pauseMs, logger });
    if (options.made === undefined) return;
    this.#formats = options.made.formats;
    this.#slots = this.#slotsOf(options.made.device);
  }

  /**
   * Loads what a router's placement says beside what is live, and answers when all is resident. One that is live already
   * is free. A newer placement takes the place of one that is being loaded while another epoch is live, where no other
   * router waits for that.
   * Rejects with PlacementRefusedError, for an epoch below the router's last one too, or for another placement of an
   * epoch that other routers work by; PlacementSupersededError; OutOfDeviceMemoryError where it does not fit beside the
   * epochs in use; what loading rejects with. Live epochs stay as they are then.
   */
  async apply(router: object, placement: ShardPlacement): Promise<PlacementAck> {
    const wanted = checkPlacement(placement, this.#options);
    const { epoch } = wanted;
    const newest = this.#uses.newest(router);
    if (epoch < newest) {
      throw new PlacementRefusedError(
        `placement: epoch ${epoch}, the router's last one is of epoch ${newest}`,
      );
    }
    const target = this.#targets.find((one) => one.placement.epoch === epoch);
    const known = target?.placement ?? this.#live.get(epoch);
    const same = known !== undefined && samePlacement(wanted, known);
    if (known !== undefined && !same && this.#uses.needs(epoch, router)) {
      throw new PlacementRefusedError(
        `placement: epoch ${epoch} was given by another router with other experts or weights`,
      );
    }
    this.#uses.place(router, epoch, placement.oldestLiveEpoch);
    try {
      if (!same) await this.#load(wanted, target);
      else if (target !== undefined) {
        this.#supersede();
        await target.done.promise;
      }
      this.#tidySoon();
    } catch (error) {
      this.#uses.refuse(router, epoch);
      throw error;
    }
    return {
      epoch,
      numExperts: this.numExperts(),
      residentBytes: this.residentBytes(),
      checkpointBytesRead: this.#options.bytesRead(),
    };
  }

  /**
   * A router dispatches to no epoch below this one any more, nor to newer ones that it gave up. Throws RangeError for one
   * that it has not placed.
   */
  release(router: object, oldestLiveEpoch: number, abandoned: readonly number[] = []): void {
    for (const epoch of abandoned) this.#uses.refuse(router, epoch);
    this.#uses.release(router, oldestLiveEpoch);
    this.#supersede();
    this.#tidySoon();
    this.#options.onChange?.();
  }

  /** A router's stream has ended: what only it used may go. */
  leave(router: object): void {
    this.#uses.leave(router);
    this.#supersede();
    this.#tidySoon();
    this.#options.onChange?.();
  }

  /** Live epochs, ascending. */
  epochs(): number[] {
    return [...this.#live.keys()].sort((a, b) => a - b);
  }

  /** Whether an epoch that a connected router uses, or waits for, places anything here. */
  isNeeded(): boolean {
    return [...this.#live.values(), ...this.#targets.map(({ placement }) => placement)].some(
      ({ epoch, layers }) =>
        this.#uses.needs(epoch) && layers.values().some(({ length }) => length > 0),
    );
  }

  /** Whether an epoch that this router may dispatch to is live. */
  serves(router: object): boolean {
    return this.epochs().some((epoch) => this.#uses.needsOf(router, epoch));
  }

  /** Bytes that the experts take on the device. */
  residentBytes(): number {
    return this.#slots?.device.residentBytes() ?? 0;
  }

  /** Experts in device memory. */
  numExperts(): number {
    return this.#slots?.numLoaded() ?? 0;
  }

  /** What computes a layer in an epoch, until the next run. Throws DispatchRefusedError WRONG_EPOCH or EXPERT_NOT_HELD. */
  hold(epoch: number, layer: number): HeldLayer {
    const placement = this.#live.get(epoch);
    if (placement === undefined || this.#slots === undefined) {
      const has = this.#live.size === 0 ? "no placement" : this.#names();
      throw new DispatchRefusedError(
        DispatchErrorCode.DISPATCH_ERROR_CODE_WRONG_EPOCH,
        `epoch ${epoch}: the shard has ${has}`,
      );
    }
    const slots = this.#slots.find(placement, layer);
    if (slots === undefined) {
      throw new DispatchRefusedError(
        DispatchErrorCode.DISPATCH_ERROR_CODE_EXPERT_NOT_HELD,
        `layer ${layer}: the shard holds no expert of it in epoch ${epoch}`,
      );
    }
    return { device: this.#slots.device, slots };
  }

  /** A resident expert as it was packed; undefined where it is not resident in that format. */
  read(layer: number, expert: number, format: ExpertFormat): Promise<PackedExpert> | undefined {
    const slot = this.#slots?.indexOf(layer, expert, format) ?? NO_SLOT;
    return slot === NO_SLOT ? undefined : this.#slots?.device.read(layer, slot);
  }

  /** Ends what is being loaded and frees the device; runs must have ended. */
  async close(): Promise<void> {
    this.#closed = true;
    this.#trouble.close();
    this.#live.clear();
    for (const { stop } of this.#targets) stop.abort(new Error("the shard is stopping"));
    await this.#work;
    this.#slots?.device.close();
    this.#slots = undefined;
  }

  async #load(placement: CheckedPlacement, instead: Target | undefined): Promise<void> {
    const { epoch } = placement;
    instead?.stop.abort(new PlacementSupersededError(epoch, epoch));
    const target = {
      placement,
      done: Promise.withResolvers<void>(),
      stop: new AbortController(),
    };
    this.#targets.push(target);
    this.#supersede();
    this.#start();
    await target.done.promise;
  }

  /** Gives up loading what every router that waited for it has left for a newer placement. */
  #supersede(): void {
    const [first] = this.#targets;
    const newest = Math.max(0, ...this.#targets.map(({ placement }) => placement.epoch));
    for (const target of this.#targets) {
      const { epoch } = target.placement;
      // A router may need the only epoch that is on its way as well as a newer one.
      const alone = target === first && this.#live.size === 0 && this.#uses.needs(epoch);
      if (epoch === newest || alone || this.#uses.isAwaited(epoch)) continue;
      target.stop.abort(new PlacementSupersededError(epoch, newest));
    }
  }

  #tidySoon(again = false): void {
    if (again || this.epochs().some((epoch) => this.#uses.isOver(epoch))) this.#untidy = true;
    this.#start();
  }

  /** One thing at a time: slots change and fill in one place only. */
  #start(): void {
    if (this.#work !== undefined || this.#closed) return;
    if (this.#targets.length === 0 && !this.#untidy) return;
    this.#work = this.#workOff().finally(() => {
      this.#work = undefined;
      this.#start();
    });
  }

  async #workOff(): Promise<void> {
    while (!this.#closed) {
      const [target] = this.#targets;
      if (target !== undefined) await this.#make(target);
      else if (this.#untidy) await this.#tidy();
      else break;
    }
    for (const { done, stop } of this.#targets) done.reject(stop.signal.reason);
    this.#targets = [];
  }

  async #make(target: Target): Promise<void> {
    const { placement, done, stop } = target;
    try {
      stop.signal.throwIfAborted();
      await this.#makeRoom(placement);
      const slots = await this.#slotsFor(placement);
      const wanted = wantedBy([...this.#live.values(), placement]);
      await slots.arrange(wanted, stop.signal);
      await this.#options.load(slots, placement, { gentle: this.#gentle, signal: stop.signal });
      await this.#options.between(() => {
        stop.signal.throwIfAborted();
        this.#live.set(placement.epoch, placement);
      });
      this.#targets = this.#targets.filter((one) => one !== target);
      done.resolve();
    } catch (error) {
      this.#targets = this.#targets.filter((one) => one !== target);
      this.#untidy = true;
      done.reject(stop.signal.aborted ? stop.signal.reason : error);
    }
    this.#options.onChange?.();
  }

  /** Frees what no live epoch names. */
  async #tidy(): Promise<void> {
    this.#untidy = false;
    this.#trouble.begin();
    await this.#drop((epoch) => this.#uses.isOver(epoch));
    try {
      await this.#slots?.arrange(wantedBy([...this.#live.values()]));
      this.#trouble.succeeded();
    } catch (error) {
      this.#trouble.failed(error);
    } finally {
      this.#options.onChange?.();
    }
  }

  /** Drops epochs until a placement fits beside the others. Throws OutOfDeviceMemoryError where it does not. */
  async #makeRoom(placement: CheckedPlacement): Promise<void> {
    const { device } = this.#options;
    const { epoch } = placement;
    await this.#drop((one) => one === epoch || this.#uses.isOver(one));
    if (this.#bytesWith(placement) > device.memoryBytes) {
      // Kept for routers that might come back.
      await this.#drop((one) => !this.#uses.needs(one));
    }
    const bytes = this.#bytesWith(placement);
    if (bytes <= device.memoryBytes) return;
    const beside = this.#live.size === 0 ? "" : ` beside ${this.#names()}`;
    throw new OutOfDeviceMemoryError(`placement ${epoch}${beside}`, bytes, device.memoryBytes);
  }

  /** The live epochs in words. */
  #names(): string {
    return `epoch${this.#live.size === 1 ? "" : "s"} ${this.epochs().join(", ")}`;
  }

  #bytesWith(placement: CheckedPlacement): number {
    let bytes = 0;
    for (const experts of wantedBy([...this.#live.values(), placement]).values()) {
      for (const { format } of experts) bytes += expertBytes(this.#options.model, format);
    }
    return bytes;
  }

  /** Drops live epochs; which, is judged when it happens: a router may have come to one meanwhile. */
  async #drop(goes: (epoch: number) => boolean): Promise<void> {
    if (!this.epochs().some(goes)) return;
    await this.#options.between(() => {
      for (const epoch of this.epochs()) if (goes(epoch)) this.#live.delete(epoch);
    });
  }

  /** The device's slots, made again where it is not for the placement's formats: kernels are compiled for some only. */
  async #slotsFor({ formats, common }: CheckedPlacement): Promise<DeviceSlots> {
    const { device, between, formatsBeside } = this.#options;
    const isReady = device.anyFormat || formats.every((format) => this.#formats.includes(format));
    if (this.#slots !== undefined && isReady) return this.#slots;
    if (this.#slots !== undefined) {
      await this.#drop((epoch) => !this.#uses.needs(epoch));
      if (this.#live.size > 0) {
        throw new PlacementRefusedError(
          `placement: experts in ${formats.join(", ")}, while it has ${this.#names()} the shard computes ${this.#formats.join(", ")}`,
        );
      }
      await between(() => this.#slots?.device.close());
      this.#slots = undefined;
    }
    this.#formats = [...new Set([...formats, ...formatsBeside(common)])];
    this.#slots = this.#slotsOf(await device.create(this.#formats));
    return this.#slots;
  }

  #slotsOf(device: ExpertDevice): DeviceSlots {
    const { between, keep, model } = this.#options;
    return new DeviceSlots({
      device,
      numExperts: model.numExperts,
      between,
      keep,
      gentle: this.#gentle,
    });
  }
}
