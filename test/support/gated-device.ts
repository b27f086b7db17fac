/** An expert device whose runs wait until the test lets them. */

import type { ExpertDevice } from "../../core/expert-device.ts";
import type { ShardDevice } from "../../expert-service/device.ts";

/** Holds runs back. */
export interface Gate {
  /** Runs begun so far. */
  readonly begun: () => number;
  /** Wraps a device. */
  readonly wrap: (device: ShardDevice) => ShardDevice;
  /** Runs that wait, and later ones, wait no longer. */
  open(): void;
  /** Later runs wait again. */
  shut(): void;
  /** Later runs reject with this; undefined: as usual. */
  failWith(error: Error | undefined): void;
  /** Experts that are loaded later are not taken, by this reason; undefined: as usual. */
  failLoads(error: Error | undefined): void;
}

/** Makes a gate, shut at first. */
export function createGate(): Gate {
  let begun = 0;
  let failure: Error | undefined;
  let loadFailure: Error | undefined;
  let gate = Promise.withResolvers<void>();
  const gated = (device: ExpertDevice): ExpertDevice => ({
    adapter: device.adapter,
    maxRows: device.maxRows,
    lost: device.lost,
    allocate: (layer, formats) => device.allocate(layer, formats),
    load: (layer, slot, weights) => device.load(layer, slot, weights),
    loadPacked: (layer, slot, expert) => device.loadPacked(layer, slot, expert),
    loadParts: (layer, slot, expert, bytes) => {
      if (loadFailure) throw loadFailure;
      return device.loadParts(layer, slot, expert, bytes);
    },
    read: (layer, slot) => device.read(layer, slot),
    rearrange: (layer, formats, from) => device.rearrange(layer, formats, from),
    settled: () => device.settled(),
    residentBytes: () => device.residentBytes(),
    free: (layer) => device.free(layer),
    close: () => device.close(),
    async run(layer, rows, slots, weights) {
      begun++;
      await gate.promise;
      if (failure) throw failure;
      return device.run(layer, rows, slots, weights);
    },
  });
  return {
    begun: () => begun,
    wrap: (device) => ({
      ...device,
      create: async (formats) => gated(await device.create(formats)),
    }),
    open: () => gate.resolve(),
    shut: () => {
      gate = Promise.withResolvers<void>();
    },
    failLoads: (error) => {
      loadFailure = error;
    },
    failWith: (error) => {
      failure = error;
    },
  };
}
